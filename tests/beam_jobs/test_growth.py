import copy
import json
import random
import re
import shutil

import polars as pl
import pytest

from beam_jobs.forgetting import ForgetLists
from beam_jobs.growth import append_new, check_log, open_growth
from beam_jobs.preprocess import run
from tests.beam_jobs.logs import (
    config_of,
    make_events,
    make_impressions,
    make_items,
    make_users,
    write_jsonl,
    write_logs,
)
from tests.beam_jobs.records import read_examples
from tests.beam_jobs.test_preprocess import bytes_of
from tfrec import manifest
from tfrec.config import parse
from tfrec.errors import UsageError, UserError
from tfrec.schema import Schema
from tfrec.transforms import Vocabulary, read_values, write_values

DAY = 86_400
FORGOTTEN_USERS, FORGOTTEN_ITEMS = ["u3", "u7", "nobody"], ["i2", "i21", "i9x", "nothing"]


def new_events():
    """The old days without item i1 and without views, and a day of new users, items, event types and devices."""
    events = [row for row in make_events() if row["item_id"] != "i1"]
    later = [
        {**row, "user_id": f"user-{row['user_id']}", "item_id": f"new{row['item_id']}", "time": row["time"] + DAY}
        for row in make_events(seed=5, num_events=80)
    ]
    for place, row in enumerate(later):
        row.update(device=f"watch{place % 3}", event_type="wish" if place % 4 == 0 else row["event_type"])
    return events + later


def new_items():
    """The old items but for the last four, with other contents, and some new ones."""
    old = [
        {**row, "price": 1000.0, "brand": "a brand of its own"} for row in make_items()[:-4] if row["item_id"] != "i1"
    ]
    return old + [
        {**row, "item_id": f"newi{place}", "brand": f"brandnew{place % 2}"} for place, row in enumerate(make_items(5))
    ]


def write_new_logs(folder):
    write_logs(folder, new_events())
    write_jsonl(folder / "items.jsonl", new_items())
    (folder / "users.txt").write_text("\n".join(FORGOTTEN_USERS) + "\n")
    (folder / "items.txt").write_text("\n".join(FORGOTTEN_ITEMS))


def forget(folder):
    return {"users": str(folder / "users.txt"), "items": str(folder / "items.txt")}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    write_logs(folder)
    return run(parse(config_of(folder, folder / "dataset")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new")
    write_new_logs(folder)
    return folder


@pytest.fixture(scope="module")
def grown(old, folder):
    return run(parse(config_of(folder, folder / "dataset", forget=forget(folder))), grow_from=old)


def vocabularies(directory):
    features = [feature for feature in Schema.read(directory).features if isinstance(feature.transform, Vocabulary)]
    return {feature.name: read_values(directory / feature.transform.file) for feature in features}


def test_no_id_moves_and_new_values_come_behind(old, grown):
    before, after = vocabularies(old), vocabularies(grown)
    names = {"item_id", "brand", "tags", "blend", "grade", "country", "tastes", "device", "topics"}
    assert before.keys() == after.keys() == names
    for name, values in before.items():
        kept = ["" if name == "item_id" and value in FORGOTTEN_ITEMS else value for value in values]
        assert after[name][: len(values)] == kept, name
        added = [value for value in after[name][len(values) :] if value]
        assert len(set(added) - set(values)) == len(added), name
        assert Schema.read(grown).feature(name).transform.size == len(after[name]) + 2
    assert set(after["brand"]) - set(before["brand"]) == {"a brand of its own", "brandnew0", "brandnew1"}
    assert set(after["device"]) - set(before["device"]) == {"watch0", "watch1", "watch2"}
    types = [Schema.read(directory).event_types for directory in (old, grown)]
    assert types[1] == (*types[0], "wish")


def test_old_values_code_the_same(old, grown):
    """Whatever the value: words, boundaries, quantisers stay; of vocabularies, what was known keeps its code."""
    rng = random.Random(0)
    schemas = [Schema.read(old), Schema.read(grown)]
    titles = [row["title"] for row in make_items()] + ["", "red", "never seen words", None]
    for name, values in {
        "price": [rng.uniform(-5, 40) for _ in range(200)] + [float(n) for n in range(22)],
        "paid": [rng.uniform(-1, 11) for _ in range(200)],
        "age": [rng.uniform(15, 55) for _ in range(200)],
    }.items():
        codes = [
            schema.feature(name).transform.encode(values, path)
            for schema, path in zip(schemas, (old, grown), strict=True)
        ]
        assert codes[0].tolist() == codes[1].tolist(), name
    for name in ("brand", "tags", "country", "device"):
        values = read_values(old / schemas[0].feature(name).transform.file)
        codes = [
            schema.feature(name).transform.encode(values, path)
            for schema, path in zip(schemas, (old, grown), strict=True)
        ]
        assert codes[0].tolist() == codes[1].tolist() == list(range(2, len(values) + 2)), name
    texts = [schema.feature("text") for schema in schemas]
    vectors = [text.encoder.encode(titles, path) for text, path in zip(texts, (old, grown), strict=True)]
    assert vectors[0].tobytes() == vectors[1].tobytes()
    for name in ("artifacts/image.npz", "artifacts/text.npz", "artifacts/text.words.npz"):
        assert (old / name).read_bytes() == (grown / name).read_bytes()


def test_forgotten_ones_are_nowhere(grown, folder):
    """Searched for in every byte that was written; ids like u3 are looked for where they stand alone."""
    alone = rb"(?<![A-Za-z0-9_.-])%s(?![A-Za-z0-9_.-])"
    for name, content in bytes_of(grown).items():
        for forgotten in (*FORGOTTEN_USERS, *FORGOTTEN_ITEMS):
            assert re.search(alone % re.escape(forgotten).encode(), content) is None, (name, forgotten)
    account = manifest.read_manifest(grown)["account"]
    gone = [row for row in new_events() if row["user_id"] in FORGOTTEN_USERS or row["item_id"] in FORGOTTEN_ITEMS]
    assert account["events"]["files"]["events.csv"]["filtered"]["data.forget"] == len(gone) > 0
    assert account["users"]["files"]["users.parquet"]["filtered"]["data.forget"] == sum(
        row["user_id"] in FORGOTTEN_USERS for row in make_users()
    )
    users = {example["user_id"][0].decode() for example in read_examples(grown, "histories")}
    assert users == {row["user_id"] for row in new_events() if row not in gone}


def test_items_that_no_log_names_any_more_are_retired(old, grown):
    before, after = vocabularies(old)["item_id"], vocabularies(grown)["item_id"]
    found = read_examples(grown, "items")
    assert [example["item"][0] for example in found] == list(range(2, len(after) + 2))
    users = {row["user_id"] for row in new_events() if row["item_id"] not in FORGOTTEN_ITEMS} - set(FORGOTTEN_USERS)
    rows = [*new_events(), *(row for row in make_impressions() if row["user_id"] in users)]
    named = {row["item_id"] for row in rows if row["user_id"] in users} | {row["item_id"] for row in new_items()}
    expected = {item_id for item_id in before if item_id not in named - set(FORGOTTEN_ITEMS)}
    retired = [example for example in found if example["retired"] == [1]]
    assert {before[example["item"][0] - 2] for example in retired} == expected > {"i2"}
    assert {example["item_id"][0].decode() for example in retired} == {""} | expected - set(FORGOTTEN_ITEMS)
    assert all(example["train_count"] == [0] for example in retired)
    assert Schema.read(grown).counts["items"] == len(found) - len(retired)
    assert json.loads((grown / "statistics.json").read_text())["items"]["retired"] == len(retired)


def test_histories_hold_the_new_events_with_the_old_codes(old, grown):
    ids = ["", "", *vocabularies(grown)["item_id"]]
    schema = Schema.read(grown)
    assert schema.time_origin == Schema.read(old).time_origin
    expected = {}
    for row in sorted(new_events(), key=lambda row: row["time"]):
        if row["user_id"] not in FORGOTTEN_USERS and row["item_id"] not in FORGOTTEN_ITEMS:
            expected.setdefault(row["user_id"], []).append(row)
    for example in read_examples(grown, "histories"):
        rows = expected[example["user_id"][0].decode()]
        assert [ids[item] for item in example["item"]] == [row["item_id"] for row in rows]
        assert [time + schema.time_origin for time in example["time"]] == [row["time"] for row in rows]
        assert [schema.event_types[code - 2] for code in example["event_type"]] == [row["event_type"] for row in rows]


def test_grown_twice_gives_equal_bytes(old, grown, folder, tmp_path):
    config = parse(config_of(folder, tmp_path / "again", forget=forget(folder)))
    assert bytes_of(
        run(config, ["--direct_num_workers=2", "--direct_running_mode=multi_threading"], grow_from=old)
    ) == bytes_of(grown)


def test_lineage_names_every_ancestor(old, grown, folder, tmp_path):
    config = parse(config_of(folder, tmp_path / "third", forget=forget(folder)))
    third = run(config, grow_from=grown, refit=["price", "brand"])
    assert manifest.read_manifest(third)["lineage"] == [
        {"dataset": manifest.fingerprint(old), "refitted": []},
        {"dataset": manifest.fingerprint(grown), "refitted": ["brand", "offer", "price"]},
    ]
    fitted = Schema.read(third).feature("price").transform.boundaries
    assert fitted != Schema.read(old).feature("price").transform.boundaries
    assert max(fitted) == 1000.0  # of the new items
    assert vocabularies(third)["brand"][0] == "a brand of its own"  # the most frequent
    assert vocabularies(third)["item_id"] == vocabularies(grown)["item_id"]


def changed_config(folder, out, change):
    document = copy.deepcopy(config_of(folder, out))
    change(document)
    return parse(document)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda c: c["features"]["items"].pop(1), {}, "has a feature tags, the configuration has none"),
        (
            lambda c: c["features"]["events"].append({"name": "stars", "kind": "categorical"}),
            {},
            "has no feature stars; fit it anew with `--refit stars`",
        ),
        (
            lambda c: c["features"]["items"][1].update(max_values=4),
            {},
            r"`features.items` tags: `max_values` is 4, in .* it was 3; fit it anew with `--refit tags`",
        ),
        (
            lambda c: c["features"]["items"][3].update(quantiles=3),
            {},
            r"`features.items` image: `quantiles` is 3, in .* it was 2",
        ),
        (
            lambda c: c["features"]["items"][4].update(quantizer="product", quantiles=8, codes=9),
            {},
            "text: `quantizer` is 'product', in .* it was 'quantile'; fit it anew with `--refit text`",
        ),
        (lambda c: c["features"]["users"][1].update(kind="categorical", bins=32), {}, "age: `kind` is 'categorical'"),
        (lambda c: None, {"refit": ["pricee"]}, r"`--refit pricee`: no such feature; did you mean `price`\?"),
        (lambda c: None, {"refit": ["item_id"]}, "`--refit item_id`: the ids of items never move"),
        (lambda c: None, {"grow_from": None, "refit": ["price"]}, "`--refit` needs `--from`"),
        (lambda c: None, {"grow_from": "nowhere"}, "nowhere: no dataset there"),
    ],
)
def test_what_does_not_fit_is_one_line(old, folder, tmp_path, change, options, message):
    with pytest.raises((UserError, UsageError), match=message):
        run(changed_config(folder, tmp_path / "dataset", change), **{"grow_from": old, **options})
    assert not (tmp_path / "dataset").exists()


def test_an_old_dataset_that_was_changed_is_refused(old, folder, tmp_path):
    config = parse(config_of(folder, tmp_path / "dataset"))
    other = shutil.copytree(old, tmp_path / "old")
    words = other / "vocabularies" / "brand.txt"
    words.write_bytes(words.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"brand.txt: its SHA-256 differs from manifest.json; it was changed"):
        run(config, grow_from=other)
    document = json.loads((other / "schema.json").read_text())
    (other / "schema.json").write_text(json.dumps({**document, "format_version": 99}))
    with pytest.raises(UserError, match=r"format version 99, this tfrec reads \d"):
        run(config, grow_from=other)


def test_events_before_the_old_origin_are_refused(old, tmp_path):
    write_logs(tmp_path, [{**row, "time": row["time"] - 3 * DAY} for row in make_events()])
    with pytest.raises(UserError, match=r"begin on 2020-09-10, times of .* count from 2020-09-13; leave out"):
        run(parse(config_of(tmp_path, tmp_path / "dataset")), grow_from=old)


def test_a_log_that_lost_its_event_types_is_refused(old, tmp_path):
    growth = open_growth(old, parse(config_of(tmp_path, tmp_path / "dataset")), ForgetLists())
    check_log(growth, has_time=True, has_event_types=True)
    with pytest.raises(UserError, match=r"`data.events.columns`: .*dataset has event types, `data.events` has none"):
        check_log(growth, has_time=True, has_event_types=False)


def test_values_are_appended_up_to_the_size():
    assert append_new(["b", "a"], ["c", "a", "d", "e"], 4) == ["b", "a", "c", "d"]
    assert append_new(["b", "a"], ["c"], 1) == ["b", "a"]


def test_codes_without_a_value_have_lines_of_their_own(tmp_path):
    values = ["a", "", "\\-1", "", "-3"]
    write_values(tmp_path / "values.txt", values)
    assert read_values(tmp_path / "values.txt") == values
    assert len(set((tmp_path / "values.txt").read_bytes().splitlines())) == 5
    vocabulary = Vocabulary(file="values.txt", size=7)
    assert vocabulary.encode(["", None, "\\-1", "-3", "\\-3"], tmp_path).tolist() == [1, 1, 4, 6, 1]


def test_lines_that_nobody_can_take_apart_are_hidden(tmp_path):
    """Rejected rows of the forgotten are no rejects; of broken lines that name them the text is left out."""
    lines = [json.dumps(row) for row in make_events(num_events=60)]
    broken = ['{"user_id": "u3", "item_id": "i4", "time"', '{"user_id": "u5", "time"']
    bad = [json.dumps({"user_id": user, "item_id": "i4", "time": "late"}) for user in ("u3", "u5")]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, *broken, *bad]) + "\n")
    (tmp_path / "users.txt").write_text("u3\n")
    data = {
        "out": str(tmp_path / "dataset"),
        "events": {"files": [str(tmp_path / "events.jsonl")]},
        "forget": {"users": str(tmp_path / "users.txt")},
    }
    directory = run(parse({"data": data}))
    rejects = pl.read_ndjson(directory / "rejected" / "events.jsonl")
    assert rejects.select("row", "value").rows() == [
        (61, "(hidden by `data.forget`)"),
        (62, broken[1]),
        (64, "late"),
    ]
    events = manifest.read_manifest(directory)["account"]["events"]
    forgotten = 1 + sum('"u3"' in line for line in lines)
    assert events["files"]["events.jsonl"]["filtered"] == {"data.forget": forgotten}
    assert events["input"] == 64
    with pytest.raises(UserError, match=r"nolist.txt: no such file; `data.forget.users` names a text file"):
        run(parse({"data": {**data, "forget": {"users": "nolist.txt"}}}))
