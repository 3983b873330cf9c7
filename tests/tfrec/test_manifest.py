"""Manifests and publishing: what is noticed, what is left when a writer fails, is killed, or is not alone."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tfrec import manifest
from tfrec.errors import UserError
from tfrec.manifest import (
    fingerprint,
    list_files,
    published,
    published_together,
    read_manifest,
    staging_of,
    verify,
    write_manifest,
)

WRITER = """
import sys, time
from pathlib import Path
from tfrec.manifest import published
with published(Path(sys.argv[1])) as directory:
    (directory / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    directory = tmp_path / "shop"
    (directory / "items").mkdir(parents=True)
    (directory / "items" / "a").write_bytes(b"one")
    (directory / "b").write_bytes(b"four")
    write_manifest(directory, {"kind": "dataset"}, {"items/a": 7})
    return directory


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def start_writer(target: Path) -> "subprocess.Popen[str]":
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def stop(writer: "subprocess.Popen[str]") -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=30)
    assert writer.stdout is not None
    writer.stdout.close()


def test_manifest_names_every_file_with_size_hash_and_records(dataset: Path) -> None:
    assert list_files(dataset) == ["b", "items/a"]
    assert json.loads((dataset / "manifest.json").read_text()) == {
        "kind": "dataset",
        "files": {
            "b": {"bytes": 4, "sha256": hashlib.sha256(b"four").hexdigest()},
            "items/a": {"bytes": 3, "sha256": hashlib.sha256(b"one").hexdigest(), "records": 7},
        },
    }
    assert verify(dataset, whole=True)["kind"] == "dataset"
    assert fingerprint(dataset) == hashlib.sha256((dataset / "manifest.json").read_bytes()).hexdigest()


def test_fast_check_sees_sizes_and_whole_check_sees_bytes(dataset: Path) -> None:
    (dataset / "b").write_bytes(b"FOUR")
    verify(dataset)
    with pytest.raises(UserError, match="b: its SHA-256 differs"):
        verify(dataset, whole=True)
    (dataset / "b").write_bytes(b"fou")
    with pytest.raises(UserError, match=r"b: 3 bytes, manifest\.json says 4"):
        verify(dataset)
    (dataset / "b").unlink()
    with pytest.raises(UserError, match=r"b: named in manifest\.json but missing"):
        verify(dataset)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": []}', "\ufeff"])
def test_damaged_manifest_is_told(dataset: Path, text: str) -> None:
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: (not valid JSON|has no `files` table)"):
        verify(dataset)


def test_directory_without_manifest_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a finished directory"):
        read_manifest(tmp_path)


def test_file_in_place_of_a_directory_has_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("a\n")
    with pytest.raises(UserError, match=r"e\.csv: no manifest\.json there"):
        verify(tmp_path / "e.csv")


def test_success_appears_under_the_name_and_failure_does_not(tmp_path: Path) -> None:
    target = tmp_path / "new" / "shop"
    with published(target) as directory:
        (directory / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"

    def refuse(_: Path) -> None:
        raise UserError("refused")

    for broken in (published(target, check=refuse), published(target.with_name("other"), check=refuse)):
        with pytest.raises(UserError, match="refused"), broken as directory:
            (directory / "a").write_text("2")
    assert [path.name for path in target.parent.iterdir()] == ["shop"]
    assert (target / "a").read_text() == "1"


def test_replaced_target_holds_nothing_of_the_old_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with published(tmp_path / "shop") as directory:
            (directory / name).write_text(name)
    assert list_files(tmp_path / "shop") == ["b"]
    assert hidden(tmp_path) == []


def test_killed_writer_s_leftovers_go_and_those_of_similar_names_stay(tmp_path: Path) -> None:
    stop(start_writer(tmp_path / "shop"))
    assert len(hidden(tmp_path)) == 2
    others = ["large-12", "12", "staging-12", "12-staging-4", "12-old-4"]  # other targets' names begin alike
    others = [f".tmp-shop-{name}{end}" for name in others for end in ("-7", "-7-old", "-7-staging")]
    for name in (".tmp-shop-12-staging", ".tmp-shop-1", *others):
        (tmp_path / name).mkdir()
    with published(tmp_path / "shop") as directory:
        assert hidden(tmp_path) == sorted([directory.name, ".tmp-shop.lock", *others])
    assert hidden(tmp_path) == sorted(others)


def test_pid_of_a_living_process_does_not_matter(tmp_path: Path) -> None:
    leftover = tmp_path / f".tmp-shop-{os.getppid()}"
    leftover.mkdir()
    with published(tmp_path / "shop"):
        assert not leftover.exists()


def test_two_writers_of_one_target_are_refused_and_of_two_are_not(tmp_path: Path) -> None:
    writer = start_writer(tmp_path / "shop")
    try:
        with pytest.raises(UserError, match="shop: is being written now"), published(tmp_path / "shop"):
            pass
        assert len(hidden(tmp_path)) == 2
        with published(tmp_path / "shop-large"):
            pass
    finally:
        stop(writer)
    with published(tmp_path / "shop"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "shop-large"]


def test_target_that_was_moved_aside_by_a_killed_writer_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".tmp-shop-12-old"
    aside.mkdir()
    (aside / "a").write_text("1")
    with pytest.raises(RuntimeError), published(tmp_path / "shop"):
        raise RuntimeError
    assert (tmp_path / "shop" / "a").read_text() == "1"


def test_staging_stands_beside_the_temporary_directory(tmp_path: Path) -> None:
    with published(tmp_path / "shop") as directory:
        assert staging_of(directory) == directory.parent / f"{directory.name}-staging"


def test_several_targets_are_all_checked_and_flushed_before_the_first_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [tmp_path / "shop" / "1", tmp_path / "shop_scann" / "1"]
    steps: list[tuple[str, str]] = []
    flush, rename = manifest.sync_tree, manifest.replace_directory
    monkeypatch.setattr(manifest, "sync_tree", lambda path: (steps.append(("flush", path.parent.name)), flush(path)))
    monkeypatch.setattr(
        manifest, "replace_directory", lambda path, to: (steps.append(("name", to.parent.name)), rename(path, to))
    )

    def check(directory: Path) -> None:
        steps.append(("check", directory.parent.name))
        if not (directory / "file").exists():
            raise UserError("incomplete")

    with pytest.raises(UserError, match="incomplete"), published_together(targets, check=check) as (first, _):
        (first / "file").write_text("1")
    assert list(tmp_path.glob("*/*")) == []
    steps.clear()
    with published_together(targets, check=check) as directories:
        for directory in directories:
            (directory / "file").write_text("1")
    assert steps == [(step, name) for step in ("check", "flush", "name") for name in ("shop", "shop_scann")]
    assert sorted(tmp_path.glob("*/*")) == targets


@pytest.mark.parametrize("moment", ["before", "meanwhile", "at the rename"])
def test_existing_target_is_refused_where_it_may_not_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    targets = [tmp_path / "shop" / "1", tmp_path / "shop_scann" / "1"]

    def appear() -> None:
        targets[0].mkdir(parents=True)
        (targets[0] / "file").write_text("of another")

    if moment == "before":
        appear()
    if moment == "at the rename":
        refuse = manifest._refuse_existing
        calls = iter(range(3))
        monkeypatch.setattr(manifest, "_refuse_existing", lambda paths: (refuse(paths), next(calls) == 1 and appear()))
    refused = pytest.raises(UserError, match=r"shop/1: is already there and is not replaced")
    with refused, published_together(targets, replace=False) as directories:
        for directory in directories:
            (directory / "file").write_text("ours")
        if moment == "meanwhile":
            appear()
    assert (targets[0] / "file").read_text() == "of another"
    assert list(tmp_path.glob("*/*")) == [targets[0]]
