"""Section J of the conformance checklist: several models, their labels, new configurations (no TensorFlow)."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from serving.models import Models
from serving.status import Code, ServingError
from serving.versions import EveryVersion, Model, ModelSource, Retries, Specific, State
from tests.serving.test_versions import Fake, Loader, available, make, wait_until
from tfrec.errors import UserError


def served(sources: dict[str, ModelSource], load: Any = None, **options: Any) -> Models:
    models = Models(lambda: sources, load or Loader(), poll_seconds=0.02, find_seconds=0, complete=True, **options)
    models.start()
    return models


def status_of(call: Any, *arguments: Any) -> tuple[Code, str]:
    with pytest.raises(ServingError) as caught:
        call(*arguments)
    return caught.value.code, caught.value.message


@pytest.mark.conformance("J1", "J2", "I7")
def test_j1_j2_i7_reload_waits_unloads_and_loads_again(tmp_path: Path) -> None:
    for name in ("a/1", "b/1", "b/2", "elsewhere/5"):
        make(tmp_path, name)

    def slow(path: Path) -> Fake:
        time.sleep(0.05)
        return Fake(path)

    a, b = ModelSource(tmp_path / "a"), ModelSource(tmp_path / "b")
    models = served({"a": a}, slow)
    assert available(models, "a") == [1]  # the start has waited
    models.reload({"b": b})
    assert available(models, "b") == [2]
    assert [status.state for status in models.status("a")] == [State.END]
    assert status_of(models.handle, "none")[0] == Code.NOT_FOUND
    assert models.names == ["b"]
    models.reload({"a": a, "b": ModelSource(tmp_path / "b", EveryVersion())})
    assert (available(models, "a"), available(models, "b")) == ([1], [2, 1])
    models.reload({"a": ModelSource(tmp_path / "elsewhere"), "b": ModelSource(tmp_path / "b", Specific((1,)))})
    assert (available(models, "a"), available(models, "b")) == ([5], [1])
    models.reload({"a": a})
    assert available(models, "a") == [1]
    models.close()


def test_same_number_at_another_place_is_loaded_before_the_old_one_goes(tmp_path: Path) -> None:
    for name in ("here/1", "there/1"):
        make(tmp_path, name)
    models = served({"m": ModelSource(tmp_path / "here")})
    with models.handle("m") as old:
        models.reload({"m": ModelSource(tmp_path / "there")})
        with models.handle("m") as new:
            assert old.servable is not new.servable
        assert not old.servable.closed  # type: ignore[attr-defined]
    wait_until(lambda: old.servable.closed)  # type: ignore[attr-defined]
    (tmp_path / "broken" / "1").mkdir(parents=True)
    models.reload({"m": ModelSource(tmp_path / "broken")})
    assert available(models, "m") == [1]
    models.close()


@pytest.mark.conformance("J4")
def test_j4_model_that_does_not_load_ends_the_start(tmp_path: Path) -> None:
    make(tmp_path, "good/1")
    make(tmp_path, "bad/3", good=False)
    sources = {"good": ModelSource(tmp_path / "good"), "bad": ModelSource(tmp_path / "bad")}
    models = Models(lambda: sources, Loader(), poll_seconds=0, complete=True)
    code, message = status_of(models.start)
    assert code == Code.UNKNOWN
    assert message == (
        "1 servable(s) did not become available: "
        "{{name: bad version: 3} due to error: DATA_LOSS: bad/3/good is missing}"
    )
    (kept,) = models.status("bad")
    assert (kept.state, kept.code) == (State.END, Code.DATA_LOSS)
    models.close()


@pytest.mark.conformance("J8")
def test_j8_labels_go_to_versions_that_answer(tmp_path: Path) -> None:
    for name in ("1", "2"):
        make(tmp_path, name)

    def labelled(**labels: int) -> dict[str, ModelSource]:
        return {"m": ModelSource(tmp_path, EveryVersion(), labels)}

    models = served(labelled(stable=1))
    message = "Request to assign label to version 9 of model m, which is not currently available for inference"
    assert status_of(models.reload, labelled(stable=1, canary=9)) == (Code.FAILED_PRECONDITION, message)
    assert status_of(models.handle("m", label="canary").__enter__)[0] == Code.INVALID_ARGUMENT
    models.reload(labelled(stable=1, canary=2))
    with models.handle("m", label="canary") as handle:
        assert handle.version == 2
    models.close()
    lenient = served(labelled(stable=1), allow_unavailable_labels=True)
    lenient.reload(labelled(stable=1, canary=9))
    assert "Specific(m, 9)" in status_of(lenient.handle("m", label="canary").__enter__)[1]
    assert status_of(lenient.reload, labelled(stable=9))[0] == Code.FAILED_PRECONDITION
    with lenient.handle("m", label="stable") as handle:
        assert handle.version == 1
    lenient.close()


@pytest.mark.conformance("J11")
@pytest.mark.parametrize(("failures", "calls", "ends"), [(2, 3, State.AVAILABLE), (9, 4, State.END)])
def test_j11_failed_loads_are_tried_again_a_few_times(tmp_path: Path, failures: int, calls: int, ends: State) -> None:
    make(tmp_path, "1")
    seen: list[float] = []

    def fragile(path: Path) -> Fake:
        seen.append(time.monotonic())
        if len(seen) <= failures:
            raise ServingError(Code.UNAVAILABLE, "later")
        return Fake(path)

    model = Model("m", ModelSource(tmp_path), fragile, retries=Retries(3, first_seconds=0.02, longest_seconds=0.03))
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        model.poll()
        time.sleep(0.002)
    assert len(seen) == calls
    assert [status.state for status in model.status()] == [ends]
    waits = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert all(wait >= 0.02 for wait in waits)


def test_waits_double_up_to_the_longest() -> None:
    retries = Retries(count=4, first_seconds=1.0, longest_seconds=5.0)
    assert [retries.wait_seconds(failures) for failures in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 5.0]
    assert retries.wait_seconds(5) == float("inf")


def test_bad_listing_leaves_everything_as_it_is(tmp_path: Path) -> None:
    from tfrec.errors import UserError

    make(tmp_path, "a/1")
    fail = threading.Event()
    asked: list[bool] = []

    def find() -> dict[str, ModelSource]:
        asked.append(fail.is_set())
        if fail.is_set():
            raise UserError("models.config: cannot be parsed")
        return {"a": ModelSource(tmp_path / "a")}

    models = Models(find, Loader(), poll_seconds=0.01, complete=True)
    models.start()
    fail.set()
    wait_until(lambda: asked.count(True) >= 2)
    assert available(models, "a") == [1]
    models.close()


def test_lasting_fault_of_the_listing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a/1")
    looks: list[int] = []
    faults = {**dict.fromkeys(range(3, 6), "first"), **dict.fromkeys(range(6, 9), "second"), 10: "second"}

    def find() -> dict[str, ModelSource]:
        looks.append(len(looks))
        if looks[-1] in faults:
            raise UserError(faults[looks[-1]])
        return {"a": ModelSource(tmp_path / "a")}

    models = Models(find, Loader(), poll_seconds=0, find_seconds=0.01)
    models.start()
    wait_until(lambda: len(looks) > 12)
    models.close()
    told = [record.message.rpartition(": ")[2] for record in caplog.records if "not in force" in record.message]
    assert told == ["first", "second", "second"]
