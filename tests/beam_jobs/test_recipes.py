import json
import shutil

import polars as pl
import pytest

from beam_jobs.recipes import prepare
from tfrec import manifest
from tfrec.config import parse
from tfrec.errors import UsageError, UserError

MOVIES_1M = "1::Toy Story (1995)::Animation|Comedy\n2::Am\u00e9lie (2001)::Romance\n3::Nikita::(no genres listed)\n"
RATINGS_1M = "7::1::5::978300760\n7::2::3::978302109\n8::1::4::978301968\n"
USERS_1M = "7::F::1::10::48067\n8::M::56::16::70072\n"


def make_config(tmp_path, name, path=None, options=None, **data):
    recipe = {"name": name, "path": None if path is None else str(path), "options": options or {}}
    return parse({"data": {"out": str(tmp_path / "out"), "recipe": recipe, **data}})


def read(source):
    assert source.format == "auto"
    return pl.read_parquet(source.files[0])


def write_movielens_1m(folder):
    folder.mkdir(exist_ok=True)
    for name, text in (("movies.dat", MOVIES_1M), ("ratings.dat", RATINGS_1M), ("users.dat", USERS_1M)):
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder


def test_movielens_1m_is_read_as_published(tmp_path):
    config = prepare(make_config(tmp_path, "movielens", write_movielens_1m(tmp_path / "ml-1m")))
    assert config.data.events.files == (f"{tmp_path}/out.sources/events.parquet",)
    assert read(config.data.events).rows() == [
        ("7", "1", 5.0, 978300760),
        ("7", "2", 3.0, 978302109),
        ("8", "1", 4.0, 978301968),
    ]
    assert read(config.data.items).rows() == [
        ("1", "Toy Story", 1995, ["Animation", "Comedy"]),
        ("2", "Am\u00e9lie", 2001, ["Romance"]),
        ("3", "Nikita", None, []),
    ]
    assert read(config.data.users).rows() == [("7", "F", 1, "10"), ("8", "M", 56, "16")]
    assert config.data.impressions is None


def test_movielens_100k_is_read_as_published(tmp_path):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    flags = "0|1|0|0|0|1" + "|0" * 13
    (folder / "u.item").write_text(
        f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/x|{flags}\n", encoding="latin-1"
    )
    (folder / "u.data").write_text("196\t1\t3\t881250949\n")
    (folder / "u.user").write_text("196|24|M|technician|85711\n")
    config = prepare(make_config(tmp_path, "movielens", folder))
    assert read(config.data.events).rows() == [("196", "1", 3.0, 881250949)]
    assert read(config.data.items).rows() == [("1", "Toy Story", 1995, ["Action", "Comedy"])]
    assert read(config.data.users).rows() == [("196", "M", 24, "technician")]


def test_movielens_csv_has_quoted_titles_and_no_users(tmp_path):
    folder = tmp_path / "ml-20m"
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,11,3.5,1112486027\n")
    (folder / "movies.csv").write_text('movieId,title,genres\n11,"American President, The (1995)",Comedy|Drama\n')
    config = prepare(make_config(tmp_path, "movielens", folder))
    assert read(config.data.events).rows() == [("1", "11", 3.5, 1112486027)]
    assert read(config.data.items).rows() == [("11", "American President, The", 1995, ["Comedy", "Drama"])]
    assert config.data.users is None


def test_sections_given_explicitly_win(tmp_path):
    folder = write_movielens_1m(tmp_path / "ml-1m")
    (folder / "ratings.dat").unlink()
    config = prepare(make_config(tmp_path, "movielens", folder, events={"files": ["mine.parquet"]}))
    assert config.data.events.files == ("mine.parquet",)
    assert read(config.data.items).height == 3
    assert not (tmp_path / "out.sources" / "events.parquet").exists()


def test_a_damaged_number_names_file_and_row(tmp_path):
    folder = write_movielens_1m(tmp_path / "ml-1m")
    (folder / "ratings.dat").write_text("7::1::5::978300760\n7::2::3::soon\n")
    with pytest.raises(UserError, match=r"ratings.dat: row 2: `time` must be a number. Received: 'soon'"):
        prepare(make_config(tmp_path, "movielens", folder))
    assert not (tmp_path / "out.sources").exists()


def test_sources_are_used_again_until_their_inputs_change(tmp_path):
    folder = write_movielens_1m(tmp_path / "ml-1m")
    config = make_config(tmp_path, "movielens", folder)
    events = tmp_path / "out.sources" / "events.parquet"
    prepare(config)
    first = events.stat().st_mtime_ns
    prepare(config)
    assert events.stat().st_mtime_ns == first
    (folder / "ratings.dat").write_text(RATINGS_1M + "9::1::1::978301000\n")
    assert read(prepare(config).data.events).height == 4
    manifest.verify(tmp_path / "out.sources", whole=True)


def test_a_cut_source_is_made_again(tmp_path):
    config = make_config(tmp_path, "movielens", write_movielens_1m(tmp_path / "ml-1m"))
    prepare(config)
    (tmp_path / "out.sources" / "events.parquet").write_bytes(b"PAR1")
    assert read(prepare(config).data.events).height == 3


@pytest.mark.parametrize(
    ("recipe", "name", "content", "message"),
    [
        (
            "movielens",
            "ratings.csv",
            b"user,movieId,rating,timestamp\n1,2,3,4\n",
            "has no column `userId`; it has user, mov",
        ),
        ("movielens", "ratings.csv", b'userId,movieId,rating,timestamp\n"1,2,3,4\n', "not in the form"),
        ("movielens", "movies.csv", b"id,title\n1,2\n", "has no column `movieId`; it has id, title"),
        ("online_retail", "data.parquet", b"PAR1 and no more PAR1", "not in the form in which it is given out: "),
        ("online_retail", "data.csv", b'InvoiceNo,StockCode\n1,"2\n', "has no column `Description`|not in the form"),
        ("online_retail", "data.xlsx", b"no sheet", "not in the form in which it is given out: "),
        ("amazon_s3rec", "Beauty.txt", b"1 \xff\xfe", "not in the form in which it is given out: "),
    ],
)
def test_files_that_are_damaged_are_named_in_one_line(tmp_path, recipe, name, content, message):
    folder = tmp_path / "published"
    folder.mkdir()
    for other in ("ratings.csv", "movies.csv") if recipe == "movielens" else ():
        header = "movieId,title,genres" if other == "movies.csv" else "userId,movieId,rating,timestamp"
        (folder / other).write_text(header + "\n")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{folder}/{name}: (?:{message})[^\n]*$"):
        prepare(make_config(tmp_path, recipe, folder))
    assert not (tmp_path / "out.sources").exists()


def test_files_of_ones_own_are_never_replaced(tmp_path):
    config = make_config(tmp_path, "movielens", write_movielens_1m(tmp_path / "ml-1m"))
    sources = tmp_path / "out.sources"
    sources.mkdir()
    assert prepare(config).data.events is not None
    for name, text in (("mine.csv", "a,b"), ("manifest.json", '{"files": {}}'), ("manifest.json", "{")):
        shutil.rmtree(sources)
        sources.mkdir()
        (sources / name).write_text(text)
        with pytest.raises(UserError, match=r"out.sources: exists and was not made by a recipe, so it is not replaced"):
            prepare(config)
        assert [(path.name, path.read_text()) for path in sources.iterdir()] == [(name, text)]
    shutil.rmtree(sources)
    sources.write_text("a file")
    with pytest.raises(UserError, match="was not made by a recipe"):
        prepare(config)


def test_amazon_sequences_and_attributes(tmp_path):
    (tmp_path / "Beauty.txt").write_text("1 5 3 9\n2 3\n")
    (tmp_path / "Beauty_item2attributes.json").write_text(json.dumps({"5": [7, 8], "3": [7], "9": []}))
    config = prepare(make_config(tmp_path, "amazon_s3rec", tmp_path))
    assert read(config.data.events).rows() == [("1", "5", 0), ("1", "3", 1), ("1", "9", 2), ("2", "3", 0)]
    assert read(config.data.items).rows() == [("5", ["7", "8"]), ("3", ["7"]), ("9", [])]


def test_amazon_meta_joins_columns_of_a_file_of_ones_own(tmp_path):
    (tmp_path / "Beauty.txt").write_text("1 5 3\n")
    (tmp_path / "Beauty_item2attributes.json").write_text(json.dumps({"5": [7]}))
    (tmp_path / "titles.csv").write_text("item_id,title\n3,Soap\n5,Comb\n")
    options = {"set": "Beauty", "meta": str(tmp_path / "titles.csv")}
    items = read(prepare(make_config(tmp_path, "amazon_s3rec", tmp_path, options)).data.items)
    assert items.rows() == [("5", ["7"], "Comb"), ("3", None, "Soap")]


def test_amazon_without_attributes_has_no_items(tmp_path):
    (tmp_path / "Toys.txt").write_text("1 5 3\n")
    assert prepare(make_config(tmp_path, "amazon_s3rec", tmp_path / "Toys.txt")).data.items is None


def test_amazon_folder_with_several_sets_wants_a_name(tmp_path):
    for name in ("Beauty", "Toys"):
        (tmp_path / f"{name}.txt").write_text("1 5 3\n")
    with pytest.raises(UserError, match=r"`options.set` name it. Found: Beauty, Toys"):
        prepare(make_config(tmp_path, "amazon_s3rec", tmp_path))


RETAIL = """InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country
536365,85123A,WHITE HEART ,6,12/1/2010 8:26,2.55,17850.0,United Kingdom
536366,85123A,WHITE HEART,2,12/1/2010 8:28,2.95,17850,United Kingdom
536367,22633,damaged?,-5,12/13/2010 9:00,0,,United Kingdom
C536379,22633,HAND WARMER,-1,12/1/2010 9:41,1.85,14527,France
536380,22633,HAND WARMER \u00a3,1,12/1/2010 9:45,1.85,14527,France
"""


def test_online_retail_stays_dirty_with_times_in_iso(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(RETAIL.encode("latin-1"))
    config = prepare(make_config(tmp_path, "online_retail", path))
    events = read(config.data.events)
    assert events.height == 5
    assert events["InvoiceDate"].to_list()[:3] == ["2010-12-01 08:26:00", "2010-12-01 08:28:00", "2010-12-13 09:00:00"]
    assert events["CustomerID"].to_list() == ["17850", "17850", None, "14527", "14527"]
    assert events["Quantity"].to_list() == [6, 2, -5, -1, 1]
    assert config.data.events.time_unit == "iso"
    assert config.data.events.columns["session"] == "InvoiceNo"
    assert read(config.data.items).rows() == [("22633", "HAND WARMER \u00a3", 1.85), ("85123A", "WHITE HEART", 2.75)]
    assert read(config.data.users).rows() == [("14527", "France"), ("17850", "United Kingdom")]


def test_online_retail_reads_the_spreadsheet_and_the_second_edition(tmp_path):
    from datetime import datetime

    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    sheet.append(["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"])
    sheet.append([489434, "85048", "CANDLE", 12, datetime(2009, 12, 1, 7, 45), 6.95, 13085.0, "United Kingdom"])
    sheet.append([489435, 22350, "CAT BOWL", 1, datetime(2009, 12, 1, 7, 46), 2.5, None, "France"])
    book.save(tmp_path / "online_retail_II.xlsx")
    events = read(prepare(make_config(tmp_path, "online_retail", tmp_path / "online_retail_II.xlsx")).data.events)
    assert events.rows() == [
        ("489434", "85048", "CANDLE", 12.0, "2009-12-01 07:45:00", 6.95, "13085", "United Kingdom"),
        ("489435", "22350", "CAT BOWL", 1.0, "2009-12-01 07:46:00", 2.5, None, "France"),
    ]


def test_online_retail_without_a_column_says_which(tmp_path):
    (tmp_path / "data.csv").write_text("InvoiceNo,StockCode\n1,2\n")
    with pytest.raises(UserError, match=r"data.csv: has no column `Description`; it has InvoiceNo, StockCode"):
        prepare(make_config(tmp_path, "online_retail", tmp_path / "data.csv"))


@pytest.mark.parametrize(
    ("recipe", "publisher"),
    [("movielens", "grouplens.org"), ("amazon_s3rec", "S3-Rec"), ("online_retail", "UCI Machine Learning Repository")],
)
def test_missing_data_says_who_gives_it_out(tmp_path, recipe, publisher):
    with pytest.raises(UserError, match=f"no such file or folder; .*{publisher}"):
        prepare(make_config(tmp_path, recipe, tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=f"data.recipe.path: must name .*{publisher}"):
        prepare(make_config(tmp_path, recipe))


def test_misspelt_recipes_and_options_get_a_suggestion(tmp_path):
    with pytest.raises(UsageError, match="unknown recipe `movielense`; did you mean `movielens`"):
        prepare(make_config(tmp_path, "movielense"))
    with pytest.raises(UsageError, match="`user`: unknown option; did you mean `users`"):
        prepare(make_config(tmp_path, "shop", options={"user": 10}))
    with pytest.raises(UsageError, match=r"data.recipe.options: `items`: .* Received: 3"):
        prepare(make_config(tmp_path, "shop", options={"items": 3}))


def test_without_a_recipe_nothing_changes(tmp_path):
    config = parse({"data": {"out": str(tmp_path / "out"), "events": {"files": ["mine.csv"]}}})
    assert prepare(config) is config


def test_a_spreadsheet_without_its_reader_names_the_package(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("fastexcel")

    monkeypatch.setattr(pl, "read_excel", missing)
    (tmp_path / "book.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"book.xlsx: spreadsheets need the package `fastexcel`"):
        prepare(make_config(tmp_path, "online_retail", tmp_path / "book.xlsx"))
