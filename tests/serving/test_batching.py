"""Requests that run together (section K of the conformance checklist), with servables in NumPy (no TensorFlow)."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.batching import BatchedServable, BatchScheduler, time_limit
from serving.settings import Batching
from serving.signatures import Signature, Tensor
from serving.status import Code, ServingError
from serving.text_protos import read_batching
from tests.serving.test_versions import wait_until
from tfrec.errors import UserError

ROWS = (-1,)
FLOATS = Tensor("x:0", "float", 1, ROWS)
WIDE = Tensor("w:0", "float", 1, (-1, -1))
SIGNATURES = {
    "double": Signature({"x": FLOATS}, {"y": FLOATS}),
    "sums": Signature({"a": WIDE, "b": FLOATS}, {"total": FLOATS, "b": FLOATS}),
    "scalar": Signature({"x": FLOATS}, {"y": Tensor("y:0", "float", 1, ())}),
    "each": Signature({"x": WIDE}, {"y": WIDE}),
    "liar": Signature({"x": FLOATS}, {"y": FLOATS}),
}


class Arithmetic:
    """Doubles, sums rows, and fails where a value is negative; remembers the sizes that it ran."""

    signatures = SIGNATURES
    signature_def = None
    signature_def_json: dict[str, Any] = {}  # noqa: RUF012 - a fake

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def run(self, signature_name: str, inputs: Any) -> Any:
        self.gate.wait(10)
        first = next(iter(inputs.values()))
        self.sizes.append(len(first))
        if (first < 0).any():
            raise ServingError(Code.INVALID_ARGUMENT, f"negative: {first[first < 0][0]:g}")
        if signature_name == "sums":
            return {"total": inputs["a"].sum(axis=1) + inputs["b"], "b": inputs["b"]}
        if signature_name == "scalar":
            return {"y": first.sum()}
        if signature_name == "liar" and len(first) > 1:
            return {"y": first[:1]}
        return {"y": 2 * first}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def scheduler() -> Iterator[BatchScheduler]:
    scheduler = BatchScheduler(2)
    yield scheduler
    scheduler.close()


def batched(scheduler: BatchScheduler, **parameters: Any) -> tuple[Arithmetic, BatchedServable]:
    inner = Arithmetic()
    return inner, BatchedServable(inner, scheduler, Batching(**parameters))


def together(servable: BatchedServable, signature: str, requests: list[dict[str, Any]]) -> list[Any]:
    """Asks all at once; errors come back in place of answers."""

    def ask(inputs: dict[str, Any]) -> Any:
        try:
            return servable.run(signature, inputs)
        except ServingError as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, requests))


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@pytest.mark.conformance("K1")
@pytest.mark.parametrize("sizes", [(), (2, 8), (8,)])
def test_k1_answers_are_those_of_single_requests(scheduler: BatchScheduler, sizes: tuple[int, ...]) -> None:
    inner, servable = batched(scheduler, max_batch_size=8, batch_timeout_micros=300_000, allowed_batch_sizes=sizes)
    requests = [{"x": floats(number, number + 0.5)} for number in range(4)]
    answers = together(servable, "double", requests)
    for number, answer in enumerate(answers):
        assert answer["y"].tolist() == [2.0 * number, 2.0 * number + 1]
    assert inner.sizes == [8]
    (one,) = together(servable, "double", [{"x": floats(3, 4, 5)}])
    assert one["y"].tolist() == [6.0, 8.0, 10.0]
    assert inner.sizes[1:] == [8 if sizes else 3]  # filled up to an allowed size, and cut again


@pytest.mark.conformance("K1")
def test_k1_several_inputs_outputs_and_signatures(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=4, batch_timeout_micros=200_000)
    wide = {"a": np.ones((1, 3), np.float32), "b": floats(1)}
    swapped = {"b": floats(2), "a": np.ones((1, 3), np.float32)}
    with ThreadPoolExecutor(3) as pool:
        first, second, third = (
            pool.submit(servable.run, "sums", wide),
            pool.submit(servable.run, "sums", swapped),
            pool.submit(servable.run, "double", {"x": floats(5)}),
        )
        totals = [first.result()["total"].tolist(), second.result()["total"].tolist()]
        assert (totals, third.result()["y"].tolist()) == ([[4.0], [5.0]], [10.0])
    assert sorted(inner.sizes) == [1, 1, 1] or sorted(inner.sizes) == [1, 2]


@pytest.mark.conformance("K1")
def test_k1_large_requests_are_split(scheduler: BatchScheduler) -> None:
    inner, servable = batched(
        scheduler, max_batch_size=100, enable_large_batch_splitting=True, max_execution_batch_size=4
    )
    answer = servable.run("double", {"x": np.arange(10, dtype=np.float32)})
    assert answer["y"].tolist() == [2.0 * number for number in range(10)]
    assert max(inner.sizes) <= 4
    assert sum(inner.sizes) == 10


@pytest.mark.conformance("K2")
def test_k2_different_shapes_do_not_meet_unless_they_may_be_filled_up(scheduler: BatchScheduler) -> None:
    requests = [{"a": np.full((1, width), 2.0, np.float32), "b": floats(0)} for width in (1, 3)]
    inner, servable = batched(scheduler, max_batch_size=2, batch_timeout_micros=100_000)
    assert [answer["total"].tolist() for answer in together(servable, "sums", requests)] == [[2.0], [6.0]]
    assert inner.sizes == [1, 1]
    inner, servable = batched(
        scheduler, max_batch_size=2, batch_timeout_micros=5_000_000, pad_variable_length_inputs=True
    )
    # The shorter row is filled up with its first value, as TensorFlow Serving does: 2 + 2 + 2.
    assert [answer["total"].tolist() for answer in together(servable, "sums", requests)] == [[6.0], [6.0]]
    assert inner.sizes == [2]


@pytest.mark.conformance("K2")
def test_k2_answers_as_long_as_their_inputs_are_not_filled_up(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=3, batch_timeout_micros=50_000, pad_variable_length_inputs=True)
    requests = [{"x": np.array([row], np.float32)} for row in ([1, 2, 3], [4], [5, 6, 7])]
    answers = together(servable, "each", requests)
    assert [answer["y"].tolist() for answer in answers] == [[[2, 4, 6]], [[8]], [[10, 12, 14]]]
    assert sorted(inner.sizes) == [1, 2]


@pytest.mark.conformance("K2")
@pytest.mark.parametrize(
    ("shapes", "batches"),
    [
        ([(1, 1_000_000)] + [(1, 1)] * 11, [4, 8]),  # a fifth row would make it 5 million values for the one sent
        ([(1, 1, 600), (1, 600, 1), (1, 1, 600)], [1, 2]),  # two rows of 600 x 600 values for 1,200
        ([(1, 2000)] + [(1, 1)] * 15, [16]),
    ],
)
def test_k2_batches_are_filled_up_within_bounds(
    scheduler: BatchScheduler, shapes: list[tuple[int, ...]], batches: list[int]
) -> None:
    inner, servable = batched(
        scheduler, max_batch_size=len(shapes), batch_timeout_micros=50_000, pad_variable_length_inputs=True
    )

    async def ask_in_order() -> list[Any]:
        asked = [servable.run_async("double", {"x": np.ones(shape)}, ThreadPoolExecutor()) for shape in shapes]
        return await asyncio.gather(*asked)

    answers = asyncio.run(ask_in_order())
    assert [answer["y"].flat[0] for answer in answers] == [2.0] * len(shapes)
    assert sorted(inner.sizes) == batches


@pytest.mark.conformance("K2")
def test_k2_inputs_of_one_request_have_the_same_rows(scheduler: BatchScheduler) -> None:
    _, servable = batched(scheduler)
    with pytest.raises(ServingError, match="must have equal 0th-dimension size"):
        servable.run("sums", {"a": np.ones((2, 3), np.float32), "b": floats(1)})


@pytest.mark.conformance("K3")
def test_k3_what_does_not_fit_runs_by_itself(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=4, batch_timeout_micros=5_000_000)
    assert servable.run("scalar", {"x": floats(1, 2)})["y"] == 3.0  # an output without rows
    assert servable.run("double", {"x": floats()})["y"].tolist() == []
    assert inner.sizes == [2, 0]
    inner, servable = batched(scheduler, max_batch_size=2, batch_timeout_micros=5_000_000)
    answers = together(servable, "liar", [{"x": floats(1)}, {"x": floats(2)}])  # declares rows, gives one
    assert [answer["y"].tolist() for answer in answers] == [[2.0], [4.0]]
    assert inner.sizes == [2, 1, 1]


@pytest.mark.conformance("K4")
def test_k4_waiting_beyond_the_deadline(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=1)
    inner.gate.clear()
    errors: list[ServingError] = []

    def late() -> None:
        time_limit.set(time.monotonic() + 0.05)
        try:
            servable.run("double", {"x": floats(1)})
        except ServingError as error:
            errors.append(error)

    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(servable.run, "double", {"x": floats(7)}) for _ in range(2)]
        time.sleep(0.05)
        waiting = pool.submit(late)
        time.sleep(0.15)
        inner.gate.set()
        waiting.result()
        assert [future.result()["y"].tolist() for future in busy] == [[14.0], [14.0]]
    assert [(error.code, "timeout exceeded while waiting in batching queue" in error.message) for error in errors] == [
        (Code.RESOURCE_EXHAUSTED, True)
    ]


@pytest.mark.conformance("K5")
def test_k5_full_queues_and_too_large_requests(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=2, max_enqueued_batches=1)
    with pytest.raises(ServingError, match="Task size 3 is larger than maximum input batch size 2") as caught:
        servable.run("double", {"x": floats(1, 2, 3)})
    assert caught.value.code == Code.INVALID_ARGUMENT
    inner.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        futures = []
        for _ in range(3):  # two run, the third waits
            futures.append(pool.submit(servable.run, "double", {"x": floats(1, 2)}))
            time.sleep(0.05)
        with pytest.raises(ServingError, match="queue to which this task was submitted is full") as caught:
            servable.run("double", {"x": floats(1)})
        assert caught.value.code == Code.UNAVAILABLE
        inner.gate.set()
        assert all(future.result()["y"].tolist() == [2.0, 4.0] for future in futures)


@pytest.mark.conformance("K6")
def test_k6_poisoned_request_fails_alone(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=3, batch_timeout_micros=5_000_000)
    first, bad, last = together(servable, "double", [{"x": floats(1)}, {"x": floats(-7)}, {"x": floats(3)}])
    assert (first["y"].tolist(), last["y"].tolist()) == ([2.0], [6.0])
    assert isinstance(bad, ServingError)
    assert bad.message == "negative: -7"
    assert inner.sizes == [3, 1, 1, 1]


def test_one_signature_s_crowd_does_not_hold_up_another(scheduler: BatchScheduler) -> None:
    _, servable = batched(scheduler, max_batch_size=64, batch_timeout_micros=2_000_000)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(servable.run, "double", {"x": floats(1)})
        quick = BatchedServable(Arithmetic(), scheduler, Batching(max_batch_size=1))
        started = time.monotonic()
        assert quick.run("double", {"x": floats(2)})["y"].tolist() == [4.0]
        assert time.monotonic() - started < 1.0
        assert waiting.result()["y"].tolist() == [2.0]


def test_event_loop_waits_for_batches_without_a_thread(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=4, batch_timeout_micros=5_000_000)

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1, "own") as pool:
            asked = [servable.run_async("double", {"x": floats(value)}, pool) for value in (1, 2, -7, 4)]
            alone = servable.run_async("double", {"x": floats()}, pool)  # no rows: not batched
            return await asyncio.gather(*asked, alone, return_exceptions=True)

    first, second, bad, last, alone = asyncio.run(ask())
    assert [found["y"].tolist() for found in (first, second, last, alone)] == [[2.0], [4.0], [8.0], []]
    assert isinstance(bad, ServingError)
    assert bad.message == "negative: -7"
    assert sorted(inner.sizes) == [0, 1, 1, 1, 1, 4]


def test_loop_that_ended_before_its_batch_harms_nobody(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=1)
    inner.gate.clear()

    async def leave() -> None:
        with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError):
            await asyncio.wait_for(servable.run_async("double", {"x": floats(1)}, pool), 0.01)

    asyncio.run(leave())
    inner.gate.set()
    wait_until(lambda: inner.sizes == [1])
    answers = together(servable, "double", [{"x": floats(2)}, {"x": floats(3)}, {"x": floats(4)}])
    assert [answer["y"].tolist() for answer in answers] == [[4.0], [6.0], [8.0]]


def test_closing_gives_the_queues_back(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler)
    assert len(scheduler._queues) == 4
    servable.close()
    assert (scheduler._queues, inner.closed) == ([], True)


def test_many_clients_get_their_own_answers(scheduler: BatchScheduler) -> None:
    inner, servable = batched(scheduler, max_batch_size=16, batch_timeout_micros=1000, allowed_batch_sizes=(4, 16))
    generator = np.random.default_rng(0)
    requests = [{"x": generator.normal(size=generator.integers(1, 5)).astype(np.float32) ** 2} for _ in range(300)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda inputs: servable.run("double", inputs), requests))
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], request["x"] * np.float32(2))
    assert set(inner.sizes) <= {4, 16}
    wait_until(lambda: all(queue.rows == 0 for queue in scheduler._queues))


# The parameters' file.


def test_deployed_parameters_are_read() -> None:
    from serving import app

    found = read_batching(Path(app.__file__).parent / "deploy" / "batching_parameters.txt")
    assert found == Batching(
        max_batch_size=32,
        batch_timeout_micros=2000,
        max_enqueued_batches=64,
        num_batch_threads=2,
        allowed_batch_sizes=(1, 4, 8, 16, 24, 32),
        pad_variable_length_inputs=True,
    )


@pytest.mark.conformance("K2")
@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("max_batch_size { value: 0 }", "`max_batch_size` must be at least 1"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 2", "the last must be the largest batch (4)"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 2", "must rise"),
        ("batch_timeout_micros { value: -1 }", "must not be negative"),
        ("max_execution_batch_size { value: 2000 }", "must not exceed max_batch_size (1000)"),
        ("max_batch_size: 4", "cannot be parsed as a text-format BatchingParameters"),
        ("unknown: 4", "cannot be parsed"),
    ],
)
def test_k2_bad_parameters_are_one_line(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "batching.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=r"batching\.txt") as caught:
        read_batching(path)
    assert fragment in str(caught.value)


def test_parameters_that_are_left_out_have_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text('thread_pool_name { value: "p" }')
    found = read_batching(path)
    assert (found.max_batch_size, found.batch_timeout_micros, found.max_enqueued_batches) == (1000, 0, 10)
