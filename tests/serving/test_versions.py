"""Sections I and J of the conformance checklist: which versions exist, and how they come and go (no TensorFlow)."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving import versions
from serving.models import Models
from serving.status import Code, ServingError
from serving.versions import Model, ModelSource, State, find_models, find_versions


class Fake:
    """A servable that remembers where it came from and whether it was closed."""

    signatures: dict[str, Any] = {}  # noqa: RUF012 - a fake
    signature_def = None
    signature_def_json: dict[str, Any] = {}  # noqa: RUF012 - a fake

    def __init__(self, path: Path) -> None:
        self.version = int(path.name)
        self.closed = False

    def run(self, signature_name: str, inputs: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


class Loader:
    """Loads a directory that holds a file `good`; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, path: Path) -> Fake:
        self.calls.append(path.name)
        if not (path / "good").exists():
            raise ServingError(Code.DATA_LOSS, f"{path}/good is missing")
        return Fake(path)


def make(base: Path, name: str, *, good: bool = True) -> Path:
    (base / name).mkdir(parents=True)
    (base / name / ("good" if good else "bad")).touch()
    return base / name


def model(base: Path, load: Callable[[Path], Any] | None = None, **source: Any) -> Model:
    return Model("m", ModelSource(base, **source), load or Loader())


def states(served: Model) -> dict[int, State]:
    return {status.version: status.state for status in served.status()}


def remove(path: Path) -> None:
    for child in path.iterdir():
        child.unlink()
    path.rmdir()


@pytest.mark.conformance("I1")
def test_i1_nothing_to_serve_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = model(tmp_path / "missing")
    missing.poll()
    assert "cannot be listed" in caplog.text
    (tmp_path / "empty" / "non_numeric").mkdir(parents=True)
    empty = model(tmp_path / "empty")
    empty.poll()
    for served in (missing, empty):
        with pytest.raises(ServingError, match="Could not find any versions of model m"):
            served.status()


@pytest.mark.conformance("I2", "I3")
def test_i2_i3_versions_appear_and_the_latest_wins(tmp_path: Path) -> None:
    served = model(tmp_path)
    served.poll()
    for name in ("1", "3", "2", "non_numeric"):
        make(tmp_path, name)
    served.poll()
    assert served.available() == [3]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (versions.EveryVersion(), [4, 3, 1]),
        (versions.Latest(2), [4, 3]),
        (versions.Specific((1, 3)), [3, 1]),
        (versions.Specific(()), []),
        (versions.Latest(), [4]),
    ],
)
@pytest.mark.conformance("I4", "I6")
def test_i4_i6_policies(tmp_path: Path, policy: Any, expected: list[int]) -> None:
    for name in ("1", "3", "4"):
        make(tmp_path, name)
    served = model(tmp_path, policy=policy)
    served.poll()
    assert served.available() == expected


@pytest.mark.conformance("I5", "I9", "I11")
def test_i5_i9_i11_leading_zeros_time_stamps_and_duplicates(tmp_path: Path) -> None:
    for name in ("00017", "0001", "001", "00001", "20170111173521"):
        make(tmp_path, name)
    found = {version: path.name for version, path in find_versions(tmp_path).items()}
    assert found == {17: "00017", 1: "001", 20170111173521: "20170111173521"}


@pytest.mark.conformance("I10", "J13", "J14")
def test_i10_j14_renamed_or_deleted_rolls_back(tmp_path: Path) -> None:
    make(tmp_path, "1")
    newest = make(tmp_path, "2")
    served = model(tmp_path)
    served.poll()
    assert served.available() == [2]
    newest.rename(tmp_path / "2.denied")
    served.poll()
    assert states(served) == {2: State.END, 1: State.AVAILABLE}
    (tmp_path / "2.denied").rename(newest)
    served.poll()
    assert states(served) == {2: State.AVAILABLE, 1: State.END}
    remove(newest)
    served.poll()
    assert served.available() == [1]


@pytest.mark.conformance("I12")
def test_i12_the_last_good_version_stays(tmp_path: Path) -> None:
    only = make(tmp_path / "m", "1")
    served = model(tmp_path / "m")
    served.poll()
    remove(only)
    served.poll()
    assert served.available() == [1]
    (tmp_path / "m").rmdir()
    served.poll()
    with served.handle() as handle:
        assert handle.version == 1


@pytest.mark.conformance("I14")
def test_i14_names_that_are_no_versions(tmp_path: Path) -> None:
    for name in (".tmp-12", "12.tmp", "temp-123", "-1", " 1", "1 ", "+1", "1.0", "9" * 19, "9" * 30, "\u0661", "v1"):
        make(tmp_path, name)
    (tmp_path / "5").touch()
    (tmp_path / "6").symlink_to(make(tmp_path, "12x"))
    assert find_versions(tmp_path) == {}
    make(tmp_path, str(2**63 - 1))
    assert list(find_versions(tmp_path)) == [2**63 - 1]


def test_models_of_a_directory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make(root / "shop", "1")
    make(root / ".hidden", "1")
    make(root / "empty", "x")
    make(tmp_path / "outside", "1")
    (root / "escape").symlink_to(tmp_path / "outside")
    (root / "inside").symlink_to(root / "shop")
    (root / "file").touch()
    assert sorted(find_models(root)) == ["inside", "shop"]


@pytest.mark.conformance("J10")
def test_j10_old_version_leaves_only_when_the_new_one_answers(tmp_path: Path) -> None:
    make(tmp_path, "1")
    entered, release = threading.Event(), threading.Event()

    def slow(path: Path) -> Fake:
        if path.name == "2":
            entered.set()
            assert release.wait(5)
        return Fake(path)

    served = model(tmp_path, slow)
    served.poll()
    make(tmp_path, "2")
    thread = threading.Thread(target=served.poll)
    thread.start()
    assert entered.wait(5)
    assert states(served) == {2: State.LOADING, 1: State.AVAILABLE}
    release.set()
    thread.join()
    assert states(served) == {2: State.AVAILABLE, 1: State.END}


@pytest.mark.conformance("J10")
def test_j10_j11_failed_version_is_visible_and_the_old_one_answers(tmp_path: Path) -> None:
    make(tmp_path, "1")
    load = Loader()
    served = model(tmp_path, load)
    served.poll()
    bad = make(tmp_path, "2", good=False)
    for _ in range(3):
        served.poll()
    newest, oldest = served.status()
    assert (newest.version, newest.state, newest.code) == (2, State.END, Code.DATA_LOSS)
    assert newest.message == "m/2/good is missing"  # and not where on this machine
    assert oldest.state == State.AVAILABLE
    assert load.calls == ["1", "2"]  # tried once, while its files stay the same
    (bad / "good").touch()
    served.poll()
    assert served.available() == [2]


def test_start_with_a_broken_newest_version_serves_the_one_before(tmp_path: Path) -> None:
    make(tmp_path, "1")
    make(tmp_path, "2", good=False)
    served = model(tmp_path)
    served.poll()
    assert states(served) == {2: State.END, 1: State.AVAILABLE}


def test_surprise_in_the_loader_is_a_status(tmp_path: Path) -> None:
    make(tmp_path, "1")

    def explode(path: Path) -> Fake:
        raise ZeroDivisionError("by zero")

    served = model(tmp_path, explode)
    served.poll()
    (status,) = served.status()
    assert (status.code, status.message) == (Code.INTERNAL, "ZeroDivisionError: by zero")


@pytest.mark.conformance("J12")
def test_j12_polls_at_once_load_a_version_once(tmp_path: Path) -> None:
    make(tmp_path, "1")
    calls: list[str] = []

    def slow(path: Path) -> Fake:
        calls.append(path.name)
        time.sleep(0.05)
        return Fake(path)

    served = model(tmp_path, slow)
    threads = [threading.Thread(target=served.poll) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (calls, served.available()) == (["1"], [1])


@pytest.mark.conformance("J7")
def test_j7_version_and_label(tmp_path: Path) -> None:
    for name in ("1", "2"):
        make(tmp_path, name)
    served = model(tmp_path, policy=versions.EveryVersion(), labels={"stable": 1, "gone": 9})
    served.poll()

    def version(**choice: Any) -> int:
        with served.handle(**choice) as handle:
            return handle.version

    assert (version(), version(version=1), version(label="stable")) == (2, 1, 1)
    for choice, message in (
        ({"label": "other"}, "Unrecognized servable version label: other"),
        ({"label": "gone"}, r"Specific\(m, 9\)"),
        ({"version": 3}, r"Specific\(m, 3\)"),
    ):
        with pytest.raises(ServingError, match=message):
            version(**choice)


@pytest.mark.conformance("J15")
def test_j15_request_in_flight_keeps_its_version(tmp_path: Path) -> None:
    make(tmp_path, "1")
    served = model(tmp_path)
    served.poll()
    with served.handle() as old:
        make(tmp_path, "2")
        served.poll()
        assert states(served) == {2: State.AVAILABLE, 1: State.UNLOADING}
        assert not old.servable.closed
        with served.handle() as new:
            assert new.version == 2
        with pytest.raises(ServingError), served.handle(version=1):
            pass
    wait_until(lambda: states(served)[1] == State.END)
    assert old.servable.closed


@pytest.mark.conformance("J17")
def test_j17_order_of_states(tmp_path: Path) -> None:
    make(tmp_path, "1")
    seen: list[dict[int, str]] = []
    served = Model("m", ModelSource(tmp_path), Loader(), on_change=lambda: seen.append(named(served)))
    served.poll()
    make(tmp_path, "2")
    served.poll()
    first = [state[1] for state in seen]
    assert list(dict.fromkeys(first)) == ["LOADING", "AVAILABLE", "UNLOADING", "END"]
    assert [state[2] for state in seen if 2 in state] == ["LOADING", "AVAILABLE", "AVAILABLE", "AVAILABLE"]


def named(served: Model) -> dict[int, str]:
    return {version: state.name for version, state in states(served).items()}


def test_bad_model_does_not_hold_up_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / name, "1")
    stuck = threading.Event()

    def load(path: Path) -> Fake:
        if path.parent.name == "a" and path.name == "2":
            assert stuck.wait(10)
        return Fake(path)

    changes: list[None] = []
    models = Models(lambda: find_models(tmp_path), load, poll_seconds=0.02, on_change=lambda: changes.append(None))
    models.start()
    make(tmp_path / "a", "2")
    wait_until(lambda: models.status("a")[0].state == State.LOADING)
    make(tmp_path / "b", "2")
    wait_until(lambda: models.status("b")[0].state == State.AVAILABLE)
    make(tmp_path / "c", "7")
    wait_until(lambda: "c" in models.names and available(models, "c") == [7])
    assert available(models, "a") == [1]
    stuck.set()
    wait_until(lambda: available(models, "a") == [2])
    models.close()
    assert not models.ready
    assert changes


def available(models: Models, name: str) -> list[int]:
    try:
        return [status.version for status in models.status(name) if status.state == State.AVAILABLE]
    except ServingError:
        return []


@pytest.mark.conformance("I13")
def test_i13_poll_period_zero_looks_once(tmp_path: Path) -> None:
    make(tmp_path / "a", "1")
    models = Models(lambda: find_models(tmp_path), Loader(), poll_seconds=0)
    models.start()
    make(tmp_path / "a", "2")
    time.sleep(0.1)
    assert available(models, "a") == [1]
    models.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
