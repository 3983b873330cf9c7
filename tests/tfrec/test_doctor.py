"""What the doctor finds, on made-up logs with one thing wrong at a time."""

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from tfrec import doctor
from tfrec.config import load, parse
from tfrec.doctor import Check, examine
from tfrec.schema import Schema

pytest.importorskip("apache_beam")

from beam_jobs import recipes

GIB = 1 << 30
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,time\n" + "".join(f"u{n % 9},i{n % 7},{1_700_000_000 + n}\n" for n in range(200)))
    return path


def write_config(tmp_path: Path, events: object, **sections: object) -> Path:
    document = {
        "data": {"out": str(tmp_path / "dataset"), "events": events, "repeats": "first"},
        "model": {"name": "sasrec"},
        **sections,
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_environment_alone_has_no_failure() -> None:
    checks = by_name(examine())
    assert {"Python", "packages", "CPU", "memory", "disk"} <= checks.keys()
    assert [check for check in checks.values() if check.status == "fail"] == []


def test_sound_config_passes(tmp_path: Path, log: Path) -> None:
    checks = by_name(examine(write_config(tmp_path, {"files": [str(log)]})))
    assert [check for check in checks.values() if check.status == "fail"] == []
    assert checks["events: first rows"].found == "200 rows, none rejected"
    assert "not made yet" in checks["dataset"].found
    assert "sasrec" in checks["model"].found


def test_broken_config_is_one_failed_check(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {out: x, evnts: {}}\n")
    check = by_name(examine(path))["config"]
    assert check.status == "fail"
    assert "`data.evnts`: unknown key" in check.found
    assert check.mend == "did you mean `events`?"


def test_override_is_checked_too(tmp_path: Path, log: Path) -> None:
    path = write_config(tmp_path, {"files": [str(log)]})
    check = by_name(examine(path, ["training.epochs=0"]))["config"]
    assert check.status == "fail"
    assert "`training.epochs`" in check.found


def test_missing_file_and_missing_column_are_named(tmp_path: Path, log: Path) -> None:
    check = by_name(examine(write_config(tmp_path, {"files": [str(tmp_path / "none.csv")]})))["logs"]
    assert check.status == "fail"
    assert "none.csv" in check.found
    source = {"files": [str(log)], "columns": {"time": "when"}}
    check = by_name(examine(write_config(tmp_path, source)))["logs"]
    assert check.status == "fail"
    assert "`when`" in check.found


def test_wrong_time_unit_is_found_in_the_first_rows(tmp_path: Path, log: Path) -> None:
    source = {"files": [str(log)], "time_unit": "milliseconds"}
    check = by_name(examine(write_config(tmp_path, source)))["events: first rows"]
    assert check.status == "fail"
    assert "100.0% of 200 rows rejected" in check.found
    assert "time" in check.found


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "sasrek"}, "did you mean `sasrec`?"),
        ({"name": "sasrec", "histroy_length": 9}, "did you mean `history_length`?"),
    ],
)
def test_unknown_model_or_option_is_found(tmp_path: Path, log: Path, model: object, message: str) -> None:
    check = by_name(examine(write_config(tmp_path, {"files": [str(log)]}, model=model)))["model"]
    assert check.status == "fail"
    assert message in check.mend


def test_unknown_objective_is_found(tmp_path: Path, log: Path) -> None:
    path = write_config(tmp_path, {"files": [str(log)]}, objective={"name": "full_softmx"})
    check = by_name(examine(path))["model"]
    assert check.status == "fail"
    assert "full_softmax" in check.mend


def test_seen_items_as_targets_are_a_warning(tmp_path: Path, log: Path) -> None:
    path = write_config(tmp_path, {"files": [str(log)]})
    assert by_name(examine(path, ["data.repeats=keep"]))["evaluation"].status == "warn"
    assert by_name(examine(path, ["data.repeats=keep", "evaluation.filter_seen=false"]))["evaluation"].status == "ok"


def test_missing_recipe_path_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    recipe = {"name": "movielens", "path": str(tmp_path / "ml-1m")}
    path.write_text(yaml.safe_dump({"data": {"out": str(tmp_path / "d"), "recipe": recipe}}))
    check = by_name(examine(path))["recipe"]
    assert check.status == "fail"
    assert "ml-1m" in check.found


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith("sweep_")],
    ids=lambda path: path.stem,
)
def test_shipped_config_fails_for_missing_files_alone(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFREC_DATA", str(tmp_path / "none"))
    failed = {check.name: check.found for check in examine(path) if check.status == "fail"}
    if "_shop" in path.stem:
        assert failed == {}
    else:
        assert failed
        assert failed.keys() <= {"recipe", "logs"}
        assert all(str(tmp_path / "none") in found for found in failed.values())


def test_recipe_beside_own_events_is_checked_before_and_after_it_has_run(tmp_path: Path, log: Path) -> None:
    document = {
        "data": {
            "out": str(tmp_path / "d"),
            "events": {"files": [str(log)]},
            "recipe": {"name": "shop", "options": {"users": 100, "items": 100, "seed": 1}},
            "labels": [{"name": "click", "column": "click", "operator": "==", "value": 1}],
        },
        "features": {"items": [{"name": "brand", "kind": "categorical"}], "display": ["title"]},
        "model": {"name": "sasrec"},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    checks = by_name(examine(path))
    assert [check for check in checks.values() if check.status == "fail"] == []
    assert "not made yet" in checks["recipe"].found
    assert checks["events: first rows"].found == "200 rows, none rejected"
    assert "items: files" not in checks

    recipes.prepare(load(path))
    checks = by_name(examine(path))
    assert [check for check in checks.values() if check.status == "fail"] == []
    assert "are made" in checks["recipe"].found
    assert checks["items: first rows"].found == "100 rows, none rejected"
    document["data"]["recipe"]["options"]["seed"] = 2  # type: ignore[index]
    path.write_text(yaml.safe_dump(document))
    assert "not made yet" in by_name(examine(path))["recipe"].found


def test_damaged_dataset_is_found(tmp_path: Path, log: Path) -> None:
    path = write_config(tmp_path, {"files": [str(log)]})
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "manifest.json").write_text("{}")
    check = by_name(examine(path))["dataset"]
    assert check.status == "fail"
    assert "manifest.json" in check.found


def test_scarce_memory_and_disk_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB, total=24 * GIB))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB // 10))
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: {"sse2"})
    checks = by_name(examine())
    assert checks["memory"].status == "warn"
    assert checks["disk"].status == "fail"
    assert "no AVX2" in checks["CPU"].found


def test_dataset_of_other_features_or_older_than_its_logs_is_found(tmp_path: Path, log: Path) -> None:
    from tests.datasets import make_dataset

    path = write_config(tmp_path, {"files": [str(log)]})
    make_dataset(tmp_path / "dataset")
    check = by_name(examine(path))["dataset"]
    assert check.status == "warn"
    assert "feature brand differs" in check.found
    assert "events.csv is newer" not in check.found
    os.utime(log, (4e9, 4e9))
    assert "events.csv is newer" in by_name(examine(path))["dataset"].found


def test_every_setting_that_the_schema_knows_is_compared(tmp_path: Path, log: Path) -> None:
    from tests.datasets import make_dataset

    schema = Schema.read(make_dataset(tmp_path / "dataset", target_event_types=("purchase",)))
    os.utime(log, (1e9, 1e9))
    image = {"dim": schema.feature("image").vector_dim, "groups": 2, "quantiles": 3, "keep_vectors": True}
    items: list[dict[str, object]] = [
        {"name": "brand", "kind": "categorical", "max_size": 5},
        {"name": "categories", "kind": "categorical", "multivalued": True, "separator": "|", "max_values": 3},
        {"name": "price", "kind": "numerical", "bins": 4},
        {"name": "image", "kind": "multimodal", **image},
    ]
    features = {"items": items, "display": list(schema.display)}
    histories = {"max_events": schema.max_events, "session_gap_seconds": schema.session_gap_seconds or 1800}
    path = write_config(tmp_path, {"files": [str(log)]}, features=features, histories=histories)
    same = ["data.target_events=[purchase]"]
    assert by_name(examine(path, same))["dataset"].status == "ok"

    for place, key, value, told in (
        (0, "max_size", 4, "feature brand: max_size is 4, was more (5)"),
        (0, "column", "maker", "feature brand: column is 'maker', was 'brand'"),
        (1, "separator", ";", "feature categories: separator is ';', was '|'"),
        (1, "max_values", 2, "feature categories: max_values is 2, was 3"),
        (0, "hash_buckets", 9, "feature brand: hash_buckets is 9, was None"),
        (2, "bins", 3, "feature price: bins is 3, was more (4)"),
        (3, "quantiles", 4, "feature image: quantiles is 4, was 3"),
        (3, "dim", 64, "feature image: dim is 64, was"),
        (3, "keep_vectors", False, "feature image: keep_vectors is False, was True"),
    ):
        changed = [{**item, key: value} if place == number else item for number, item in enumerate(items)]
        if key == "hash_buckets":
            del changed[0]["max_size"]
        write_config(tmp_path, {"files": [str(log)]}, features={**features, "items": changed}, histories=histories)
        check = by_name(examine(path, same))["dataset"]
        assert (check.status, told in check.found) == ("warn", True), check.found
    write_config(tmp_path, {"files": [str(log)]}, features=features, histories=histories)
    assert "data.target_events is 'all', was ('purchase',)" in by_name(examine(path))["dataset"].found


def test_impressions_are_among_the_files_that_may_be_newer(tmp_path: Path, log: Path) -> None:
    shown = tmp_path / "shown.csv"
    shown.write_text("x\n")
    config = parse({"data": {"out": "d", "events": {"files": [str(log)]}, "impressions": {"files": [str(shown)]}}})
    assert doctor._local_files(config) == [log, shown]
