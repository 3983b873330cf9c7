import gzip
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from beam_jobs.sources import ROW, list_fragments, open_log, read_batches
from tfrec.config import Source
from tfrec.errors import UserError

FRAME = pl.DataFrame(
    {"user_id": ["a", "b", "c,d", 'e"f'], "item_id": ["1", "2", "3", "4"], "time": ["10", "20", None, "40"]}
)


def read_all(source, columns=("user_id", "item_id", "time"), kind="events"):
    """All rows of a log as one frame with the file's name, and all broken lines."""
    frames, broken = [], []
    for fragment in list_fragments(open_log(kind, source)):
        for batch in read_batches(fragment, columns, source):
            broken += [(batch.file.name, *line) for line in batch.broken]
            if len(batch.frame):
                frames.append(batch.frame.with_columns(file=pl.lit(batch.file.name)))
    return pl.concat(frames), broken


def write_csv(path, text, **options):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, **options)
    return str(path)


def test_every_format_gives_the_same_rows(tmp_path):
    FRAME.write_csv(tmp_path / "log.csv")
    FRAME.write_csv(tmp_path / "log.tab.csv", separator="\t")
    FRAME.write_csv(tmp_path / "log.tsv", separator="\t")
    (tmp_path / "log.TSV.gz").write_bytes(gzip.compress((tmp_path / "log.tsv").read_bytes()))
    FRAME.write_csv(tmp_path / "log.semicolon.tsv", separator=";")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes()))
    with pa.output_stream(tmp_path / "log.csv.zst", compression="zstd") as file:
        file.write((tmp_path / "log.csv").read_bytes())
    FRAME.write_parquet(tmp_path / "log.parquet", row_group_size=2)
    FRAME.write_ndjson(tmp_path / "log.jsonl")
    delimiters = {"log.tab.csv": "\t", "log.semicolon.tsv": ";", "log.csv": ","}
    for path in tmp_path.iterdir():
        name = path.name
        rows, broken = read_all(Source(files=[str(path)], delimiter=delimiters.get(name)))
        assert rows.drop("file").equals(FRAME.with_columns(pl.Series(ROW, [1, 2, 3, 4]))), name
        assert broken == []


@pytest.mark.parametrize("delimiter", ["", "::", '"', "\n", "\r", "\u00a7"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(ValueError, match="must be one ASCII character, and neither a quote nor a line break"):
        Source(files=["log.csv"], delimiter=delimiter)


def test_files_are_sorted_and_named_below_their_shared_folder(tmp_path):
    for folder in ("2024", "2023"):
        write_csv(tmp_path / folder / "log.csv", f"user_id,item_id,time\n{folder},i,1\n")
    log = open_log("events", Source(files=[str(tmp_path / "2024" / "log.csv"), str(tmp_path / "*" / "*.csv")]))
    assert [(file.name, file.index) for file in log.files] == [("2023/log.csv", 0), ("2024/log.csv", 1)]
    alone = open_log("events", Source(files=[str(tmp_path / "2024" / "log.csv")]))
    assert [file.name for file in alone.files] == ["log.csv"]


def test_relative_names_find_the_files_of_this_folder_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("home", "[old]"):
        write_csv(tmp_path / folder / "log.csv", f"user_id,item_id,time\n{folder},i,1\n")
    FRAME.write_parquet("f1.parquet")
    FRAME.write_parquet("f2.parquet")
    globbed = open_log("events", Source(files=["f*.parquet"]))
    assert [(file.path, file.name) for file in globbed.files] == [("f1.parquet",) * 2, ("f2.parquet",) * 2]
    names = ["./f1.parquet", str(tmp_path / "f1.parquet"), "f[1].parquet", "f*1.parquet", "home/../f1.parquet"]
    assert [file.name for file in open_log("events", Source(files=names)).files] == ["f1.parquet"]
    assert read_all(Source(files=names))[0].height == FRAME.height
    elsewhere = open_log("events", Source(files=["~/*.csv", "[old]/log.csv"]))
    assert [(file.path, file.name) for file in elsewhere.files] == [
        ("[old]/log.csv", "[old]/log.csv"),
        ("home/log.csv", "home/log.csv"),
    ]
    monkeypatch.chdir(tmp_path / "home")
    above = open_log("events", Source(files=["log.csv", "../[old]/log.csv"]))
    assert [(file.path, file.name) for file in above.files] == [
        (str(tmp_path / "[old]" / "log.csv"), "[old]/log.csv"),
        ("log.csv", "home/log.csv"),
    ]
    with pytest.raises(UserError, match=r"^nothing\*.csv: no such file"):
        open_log("events", Source(files=["nothing*.csv"]))


def test_parquet_row_groups_are_read_in_parts_that_know_their_rows(tmp_path):
    table = pa.table({"user_id": range(600_000), "item_id": range(600_000), "time": range(600_000)})
    pa.parquet.write_table(table, tmp_path / "log.parquet", row_group_size=100_000)
    source = Source(files=[str(tmp_path / "log.parquet")])
    log = open_log("events", source)
    assert log.estimated_rows == 600_000
    assert log.integer_columns == {"user_id", "item_id", "time"}
    fragments = list_fragments(log)
    assert [(one.row_groups, one.first_row) for one in fragments] == [((0, 1, 2), 1), ((3, 4, 5), 300_001)]
    batches = list(read_batches(fragments[1], ["user_id"], source))
    assert [len(batch.frame) for batch in batches] == [262_144, 37_856]
    assert all((batch.frame[ROW] == batch.frame["user_id"] + 1).all() for batch in batches)


def test_broken_csv_lines_are_told_by_their_row(tmp_path):
    path = write_csv(tmp_path / "log.csv", 'user_id,item_id,time\na,1,5\nb,2\nc,3,7\n"d\nd",4,8,9\ne,5,\n')
    rows, broken = read_all(Source(files=[path]))
    assert rows.select("user_id", ROW).rows() == [("a", 1), ("c", 3), ("e", 5)]
    assert [(name, row, rule) for name, row, _, rule in broken] == [
        ("log.csv", 2, "has 2 columns, must have 3"),
        *[("log.csv", 4, "has 4 columns, must have 3 (several lines in quotes, perhaps one that is not closed)")] * 2,
    ]


def test_a_csv_without_header_and_in_another_encoding(tmp_path):
    path = write_csv(tmp_path / "log.csv", "a;Käse;1\nb\n", encoding="latin-1")
    header = ("user_id", "item_id", "time")
    rows, broken = read_all(Source(files=[path], header=header, delimiter=";", encoding="latin-1"))
    assert rows.select("item_id", ROW).rows() == [("Käse", 1)]
    assert [line[1] for line in broken] == [2]
    path = write_csv(tmp_path / "more.csv", "a;Käse;1\nb;x;2\n", encoding="latin-1")
    rows, broken = read_all(Source(files=[path], header=header, delimiter=";"))
    assert rows.select("item_id", ROW).rows() == [("x", 2)]
    assert broken == [("more.csv", 1, "", "column item_id: must be valid UTF-8 (or set `encoding` of the source)")]


def invalid_texts():
    """Three texts, the second no UTF-8, as Parquet writers that do not check them leave them."""
    offsets, content = np.array([0, 1, 3, 4], np.int32), b"a\xffbc"
    return pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(content)])


def write_invalid(folder, kind):
    """A log of three rows, the user of the second no UTF-8."""
    path = folder / ("log.csv" if kind == "csv" else "log.parquet")
    if kind == "csv":
        path.write_bytes(b"user_id,item_id,time\na,x,1\n\xffb,y,2\nc,z,3\n")
        return path
    users = {
        "texts": invalid_texts(),
        "bytes": pa.array([b"a", b"\xffb", b"c"]),
        "lists": pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), invalid_texts()),
    }[kind]
    pa.parquet.write_table(pa.table({"user_id": users, "item_id": ["x", "y", "z"], "time": [1, 2, 3]}), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "texts", "bytes", "lists"])
def test_texts_that_are_no_utf8_cost_their_rows_alone(tmp_path, kind):
    rows, broken = read_all(Source(files=[str(write_invalid(tmp_path, kind))]))
    assert rows.select("item_id", ROW).rows() == [("x", 1), ("z", 3)]
    assert rows["user_id"].explode().to_list() == ["a", "c"]
    assert [(row, rule) for _, row, _, rule in broken] == [
        (2, "column user_id: must be valid UTF-8 (or set `encoding` of the source)")
    ]


def test_a_csv_row_cut_within_a_character_costs_itself_alone(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes("user_id,item_id,time\na,Käse,1\nb,Kä".encode()[:-1] + b"\n\xffc,y,3\nd,z,4\n")
    rows, broken = read_all(Source(files=[str(path)]))
    assert rows.select("user_id", "item_id", ROW).rows() == [("a", "Käse", 1), ("d", "z", 4)]
    assert [line[1:] for line in broken] == [
        (2, "b,K\N{REPLACEMENT CHARACTER}", "has 2 columns, must have 3"),
        (3, "", "column user_id: must be valid UTF-8 (or set `encoding` of the source)"),
    ]
    path.write_bytes(b"user_id,item_id,stra\xdfe\n")
    with pytest.raises(UserError, match=r"header is not valid UTF-8\. Set `encoding` of the source"):
        open_log("events", Source(files=[str(path)]))


def test_quotes_that_are_not_closed_are_told(tmp_path):
    lines = ["user_id,item_id,time", "a,x,1", 'b,"y,2', "c,z,3", 'd,w",4', "e,v,5", 'f,"u,6', "g,t,7"]
    rows, broken = read_all(Source(files=[write_csv(tmp_path / "log.csv", "\n".join(lines) + "\n")]))
    assert rows.select("user_id", "item_id").rows() == [("a", "x"), ("e", "v")]
    assert [(text, rule) for _, _, text, rule in broken] == [
        *(
            (line, "has 2 columns, must have 3 (several lines in quotes, perhaps one that is not closed)")
            for line in ('f,"u,6', "g,t,7")
        ),
        *(
            (line, "an id holds a line break, perhaps by a quote that is not closed")
            for line in ("b,y,2", "c,z,3", "d,w")
        ),
    ]
    assert len(rows) + len(broken) == len(lines) - 1
    endless = write_csv(tmp_path / "endless.csv", 'user_id,item_id,time\na,"x,1\n' + "b,y,2\n" * 4_000_000)
    with pytest.raises(UserError, match=r"endless.csv: cannot be read: a row of more than 8 MiB, perhaps a quote that"):
        read_all(Source(files=[endless]))


@pytest.mark.parametrize("suffix", ["csv.gz", "jsonl.gz"])
def test_a_compressed_file_cut_behind_its_first_rows_is_told_in_one_line(tmp_path, suffix):
    rng = np.random.default_rng(0)
    users = rng.integers(0, 1 << 60, 200_000).astype(str)
    frame = pl.DataFrame({"user_id": users, "item_id": users[::-1], "time": np.arange(len(users))})
    content = frame.write_csv().encode() if suffix == "csv.gz" else frame.write_ndjson().encode()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(gzip.compress(content, 1)[:-20_000])
    with pytest.raises(UserError, match=rf"cut.{suffix}: cannot be read: Truncated compressed stream\.$"):
        read_all(Source(files=[str(path)]))


def test_a_hole_in_a_parquet_file_is_told_in_one_line(tmp_path):
    users = [f"user{number * 7919 % 10_007}" for number in range(50_000)]
    table = pa.table({"user_id": users, "item_id": users, "time": range(50_000)})
    pa.parquet.write_table(table, tmp_path / "log.parquet", row_group_size=5000)
    content = bytearray((tmp_path / "log.parquet").read_bytes())
    content[20_000:40_000] = bytes(20_000)
    (tmp_path / "log.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"log.parquet: cannot be read: [^\n]*$"):
        read_all(Source(files=[str(tmp_path / "log.parquet")]))


def test_json_lines_of_mixed_types_and_broken_ones(tmp_path):
    lines = [
        json.dumps({"user_id": 7, "item_id": "x", "time": 1.5, "tags": ["a", "b"]}),
        "{broken",
        json.dumps({"user_id": "seven", "item_id": "y", "time": 2}),
        "",
        "[1]",
        json.dumps({"user_id": 8.0, "item_id": "z"}),
        json.dumps({"user_id": True, "item_id": "2024-01-01T00:00:00"}),
    ]
    path = write_csv(tmp_path / "log.jsonl", "\n".join(lines) + "\n")
    rows, broken = read_all(Source(files=[path]), columns=["user_id", "item_id", "time", "tags"])
    assert rows[ROW].to_list() == [1, 3, 6, 7]
    assert rows["user_id"].to_list() == ["7", "seven", "8", "true"]
    assert rows["item_id"].to_list() == ["x", "y", "z", "2024-01-01T00:00:00"]
    assert rows["time"].to_list() == [1.5, 2.0, None, None]
    assert rows["tags"].to_list() == [["a", "b"], None, None, None]
    assert [(row, rule) for _, row, _, rule in broken] == [(2, "must be a JSON object"), (5, "must be a JSON object")]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"user_id": ' + "[" * 100_000 + "]" * 100_000 + "}"])
def test_a_line_nested_beyond_reason_is_the_only_one_rejected(tmp_path, line):
    good = json.dumps({"user_id": "a", "item_id": "x", "time": 1})
    path = write_csv(tmp_path / "log.jsonl", f"{line}\n{good}\n{line}\n{good}\n")
    rows, broken = read_all(Source(files=[path]))
    assert rows.select("user_id", ROW).rows() == [("a", 2), ("a", 4)]
    assert [(row, rule) for _, row, _, rule in broken] == [(1, "must be a JSON object"), (3, "must be a JSON object")]


def test_what_is_missing_is_named_with_the_nearest_there_is(tmp_path):
    path = write_csv(tmp_path / "log.csv", "user,item_id,time\na,1,5\n")
    with pytest.raises(UserError, match=r"nothing\*.csv: no such file, which `data.events.files` names"):
        open_log("events", Source(files=[str(tmp_path / "nothing*.csv")]))
    with pytest.raises(UserError, match=r"log.csv: no column for role `user_id`; .*Columns: user, item_id, time"):
        open_log("events", Source(files=[path]))
    with pytest.raises(UserError, match=r"log.csv: no column `usr`, .*did you mean `user`\?"):
        open_log("events", Source(files=[path], columns={"user_id": "usr"}))
    with pytest.raises(UserError, match=r"`data.events.columns.itemid`: no such role; did you mean `item_id`\?"):
        open_log("events", Source(files=[path], columns={"user_id": "user", "itemid": "item_id"}))
    with pytest.raises(UserError, match="the suffix names no format"):
        open_log("events", Source(files=[write_csv(tmp_path / "log.dat", "x")]))


def test_damaged_files_are_told_in_one_line(tmp_path):
    FRAME.write_parquet(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"user_id,item_id,time\n" + b"a,b,1\n" * 10_000)[:60])
    write_csv(tmp_path / "empty.csv", "")
    for name in ("cut.parquet", "cut.csv.gz", "empty.csv"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read: [^\n]*$"):
            read_all(Source(files=[str(tmp_path / name)]))
