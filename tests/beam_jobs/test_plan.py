from contextlib import nullcontext

import numpy as np
import pytest

from beam_jobs.plan import make_plan
from tests.beam_jobs.logs import config_of, write_logs
from tfrec.config import parse
from tfrec.errors import UsageError

LIKED = {"name": "liked", "column": "stars", "operator": ">=", "value": 4}
CATEGORY = {"kind": "categorical", "column": "device"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["brand", "price"], None),
        (["brand", "pric"], r"`features.items` deal: `cross` names pric, .* one code; did you mean `price`\?"),
        (["brand", "tags"], "`cross` names tags, which must be a feature of one code; known: brand, "),
        (["brand", "text"], "`cross` names text, which must be a feature of one code"),
        (["brand", "offer"], "`cross` names offer, which must be a feature of one code"),
        (["brand", "age"], "`cross` names age, which must be a feature of one code"),
    ],
)
def test_a_cross_is_of_two_features_of_one_code_of_its_side(tmp_path, parts, message):
    write_logs(tmp_path)
    document = config_of(tmp_path, tmp_path / "dataset")
    deal = {"name": "deal", "kind": "categorical", "cross": parts, "hash_buckets": 9}
    document["features"]["items"] = [*document["features"]["items"], deal]
    with pytest.raises(UsageError, match=message) if message else nullcontext():
        make_plan(parse(document))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("features", "items", [{"name": "id", **CATEGORY}], "`features.items`: the name id would be stored as item_id"),
        ("features", "users", [{"name": "id", **CATEGORY}], "`features.users`: the name id would be stored as user_id"),
        (
            "features",
            "events",
            [{"name": "type", **CATEGORY}],
            "the name type would be stored as event_type, which is a",
        ),
        ("features", "events", [{"name": "a", **CATEGORY}] * 2, "`features.events`: the name a is taken"),
        ("features", "events", [{"name": "brand", **CATEGORY}], "`features.events`: the name brand is taken"),
        ("features", "display", ["title", "brand", "title"], "`features.display`: names title 2 times"),
        ("data", "labels", [LIKED, {**LIKED, "value": 5}], "`data.labels`: the name liked is taken"),
        ("data", "labels", [{**LIKED, "value": float("inf")}], "`data.labels` liked: `value` must be a finite number"),
    ],
)
def test_names_that_collide_are_refused(tmp_path, section, key, value, message):
    write_logs(tmp_path)
    document = config_of(tmp_path, tmp_path / "dataset")
    make_plan(parse(document))
    document[section][key] = value
    with pytest.raises(UsageError, match=message):
        make_plan(parse(document))


def test_a_file_of_vectors_is_looked_at_before_anything_is_read(tmp_path):
    write_logs(tmp_path)
    path = tmp_path / "vectors.npy"
    document = config_of(tmp_path, tmp_path / "dataset")
    look = {"name": "look", "kind": "multimodal", "column": "price", "dim": 4, "groups": 2, "vectors": str(path)}
    document["features"] |= {"items": [look], "events": []}
    with pytest.raises(UsageError, match=r"feature look: `vectors`: .*vectors.npy is no readable .npy file: .*No such"):
        make_plan(parse(document))
    np.save(path, np.zeros((9, 3)))
    with pytest.raises(UsageError, match=r"must hold floats of shape \(rows, 4\).* holds float64 of shape \(9, 3\)"):
        make_plan(parse(document))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UsageError, match=r"is no readable .npy file: "):
        make_plan(parse(document))
    np.save(path, np.zeros((9, 4), np.float32))
    assert make_plan(parse(document)).items.fields[-2].file == str(path)


@pytest.mark.parametrize(
    ("counter", "message"),
    [
        ({"of": "brnd"}, r"`features.events` again: `of` must be user or a feature .* 'brnd'; did you mean `brand`\?"),
        ({"of": "tags"}, r"`of` must be user or a feature of items with one code. Received: 'tags'"),
        ({"of": "user", "window_seconds": 5}, r"`window_seconds` needs events with times"),
        ({"of": "user", "event_types": ["buy"]}, r"`event_types` needs event types"),
    ],
)
def test_counters_name_what_there_is(tmp_path, counter, message):
    write_logs(tmp_path)
    events = tmp_path / "events.csv"
    events.write_text(events.read_text().replace("time", "at", 1).replace("event_type", "kind", 1))
    document = config_of(tmp_path, tmp_path / "dataset", target_events="all", impressions=None)
    document["data"]["events"]["columns"] = {"order": "at"}
    document["features"]["events"] = [{"name": "again", "kind": "counter", **counter}]
    with pytest.raises(UsageError, match=message):
        make_plan(parse(document))
