"""Requests that arrive together run together.

Each signature of each version has a queue of its own, bounded. A few threads, shared by all, take what waits longest:
the first request and all behind it whose inputs have the same shape but for the number of rows, up to a full batch.
Rows are filled up to an allowed size by repeating the last one, and the surplus is cut off the answer. Where a batch
fails, its requests run one by one, so that each gets its own answer or its own error.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from serving.metrics import Metrics
from serving.settings import Batching
from serving.signatures import Arrays, Servable, Signature
from serving.status import Code, ServingError, invalid_argument

time_limit: ContextVar[float | None] = ContextVar("time_limit", default=None)
"""When the request that this thread answers must be done, as a time of `time.monotonic`; None = whenever."""

# How many values rows may be filled up with for each that was sent, and in any case: else a long request, or two that
# are long in different ways, would make a batch of many times their memory.
_FILLING = 3
_FREE_FILLING = 1 << 18

_Key = tuple[tuple[str, tuple[int, ...]], ...]
_Shapes = tuple[tuple[int, ...], ...]
_Waiter = threading.Event | asyncio.Future[None]


@dataclass
class _Task:
    """One request, or a part of a large one, in a queue; its waiter is woken when it is done."""

    inputs: Mapping[str, np.ndarray]
    rows: int
    key: _Key
    expires: float | None
    waiter: _Waiter
    entered: float = field(default_factory=time.monotonic)
    outputs: Arrays | None = None
    error: BaseException | None = None

    @cached_property
    def row_shapes(self) -> _Shapes:
        """The shapes of one row of each input."""
        return tuple(array.shape[1:] for array in self.inputs.values())

    def result(self) -> Arrays:
        if self.error is not None:
            raise self.error
        assert self.outputs is not None  # a task that is done has one or the other
        return self.outputs


class _Queue:
    """What waits for one signature of one version."""

    def __init__(self, run: Callable[[Mapping[str, np.ndarray]], Arrays], parameters: Batching) -> None:
        self.run = run
        self.parameters = parameters
        self.tasks: deque[_Task] = deque()
        self.rows = 0

    def ready_at(self) -> float:
        """When its first batch should start: now if it is full, else once its first request has waited enough."""
        if self.rows >= self.parameters.largest_batch:
            return 0.0
        return self.tasks[0].entered + self.parameters.batch_timeout_micros / 1e6

    def take(self) -> list[_Task]:
        """The first request and those behind it that fit into one batch with it."""
        first = self.tasks[0]
        taken: list[_Task] = []
        filled = _Filled(first.row_shapes)
        for task in self.tasks:
            if task.key == first.key and filled.rows + task.rows <= self.parameters.largest_batch and filled.add(task):
                taken.append(task)
        chosen = {id(task) for task in taken}
        self.tasks = deque(task for task in self.tasks if id(task) not in chosen)
        self.rows -= filled.rows
        return taken


class _Filled:
    """A batch whose rows are filled up to one shape.

    Args:
        shapes: the shapes of its first row, one an input.
    """

    def __init__(self, shapes: _Shapes) -> None:
        self.rows = 0
        self._shapes = shapes
        self._sent = 0

    def add(self, task: _Task) -> bool:
        """Takes a request in, unless too much would have to be filled up for it."""
        rows, sent = self.rows + task.rows, self._sent + task.rows * _values(task.row_shapes)
        shapes = self._shapes if task.row_shapes == self._shapes else _joint(self._shapes, task.row_shapes)
        if rows * _values(shapes) > (1 + _FILLING) * sent + _FREE_FILLING:
            return False
        self.rows, self._sent, self._shapes = rows, sent, shapes
        return True


def _values(shapes: _Shapes) -> int:
    return sum(map(math.prod, shapes))


def _joint(shapes: _Shapes, others: _Shapes) -> _Shapes:
    """The smallest shapes that have room for both."""
    return tuple(tuple(map(max, one, other)) for one, other in zip(shapes, others, strict=True))


class BatchScheduler:
    """The threads that run batches, and the queues that they take them from.

    Args:
        num_threads: batches that run at once.
        metrics: where waits and sizes are told.
    """

    def __init__(self, num_threads: int, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._queues: list[_Queue] = []
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [threading.Thread(target=self._work, name="batch", daemon=True) for _ in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def add(self, run: Callable[[Mapping[str, np.ndarray]], Arrays], parameters: Batching) -> _Queue:
        """A new queue."""
        queue = _Queue(run, parameters)
        with self._changed:
            self._queues.append(queue)
        return queue

    def remove(self, queues: list[_Queue]) -> None:
        """Forgets queues, which must be empty: whoever waits in one holds its version."""
        with self._changed:
            self._queues = [queue for queue in self._queues if all(queue is not gone for gone in queues)]

    def enqueue(self, queue: _Queue, tasks: list[_Task]) -> None:
        """Puts the parts of one request into a queue, all or none.

        Raises:
            ServingError: UNAVAILABLE, the queue is full.
        """
        rows = sum(task.rows for task in tasks)
        with self._changed:
            limit = queue.parameters.max_enqueued_batches * queue.parameters.largest_batch
            if queue.rows + rows > limit and queue.rows > 0:
                raise ServingError(
                    Code.UNAVAILABLE,
                    f"The batch scheduling queue to which this task was submitted is full; queue size: {limit} rows",
                )
            queue.tasks.extend(tasks)
            queue.rows += rows
            self._changed.notify()

    def close(self) -> None:
        """Ends the threads once nothing waits any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _next(self) -> tuple[_Queue, list[_Task]] | None:
        with self._changed:
            while True:
                waiting = [queue for queue in self._queues if queue.tasks]
                if waiting:
                    queue = min(waiting, key=_Queue.ready_at)
                    seconds = queue.ready_at() - time.monotonic()
                    if seconds <= 0 or self._closing:
                        taken = queue.take()
                        if len(waiting) > 1 or queue.tasks:
                            self._changed.notify()
                        return queue, taken
                    self._changed.wait(seconds)
                elif self._closing:
                    return None
                else:
                    self._changed.wait()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            queue, tasks = batch
            now = time.monotonic()
            alive = []
            for task in tasks:
                self._metrics.observe(
                    "/tensorflow/serving/batching_session/queuing_latency", 1e6 * (now - task.entered)
                )
                if task.expires is not None and now > task.expires:
                    message = "Request timeout exceeded while waiting in batching queue"
                    task.error = ServingError(Code.RESOURCE_EXHAUSTED, message)
                    _wake([task])
                else:
                    alive.append(task)
            if alive:
                rows = sum(task.rows for task in alive)
                self._metrics.observe("/tensorflow/serving/batching_session/input_batch_size", rows)
                _run_together(queue, alive, rows)


def _wake(tasks: Sequence[_Task]) -> None:
    """Wakes whoever waits for these; an event loop once for all of its own, which costs a system call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for task in tasks:
        if isinstance(task.waiter, threading.Event):
            task.waiter.set()
        else:
            by_loop.setdefault(task.waiter.get_loop(), []).append(task.waiter)
    for loop, waiters in by_loop.items():
        with suppress(RuntimeError):  # it is closed: the server has ended, and nobody waits any more
            loop.call_soon_threadsafe(_set_done, waiters)


def _set_done(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _run_together(queue: _Queue, tasks: list[_Task], rows: int) -> None:
    size = next((size for size in queue.parameters.allowed_batch_sizes if size >= rows), rows)
    try:
        outputs = queue.run(_joined(tasks, size - rows))
        if any(array.ndim == 0 or len(array) != size for array in outputs.values()):
            raise ServingError(Code.INTERNAL, "an output does not have a row for each row of the batch")
    except Exception:  # whatever it is, each request hears of its own fault alone
        _run_alone(queue, tasks)
        return
    start = 0
    for task in tasks:
        task.outputs = {alias: array[start : start + task.rows] for alias, array in outputs.items()}
        start += task.rows
    _wake(tasks)


def _run_alone(queue: _Queue, tasks: list[_Task]) -> None:
    for task in tasks:
        try:
            task.outputs = queue.run(task.inputs)
        except Exception as error:  # it goes to whoever waits for it, who knows what to tell
            task.error = error
        _wake([task])


def _joined(tasks: list[_Task], surplus: int) -> Arrays:
    """The inputs of all, one behind the other; shorter ones filled up with their first value, then `surplus` rows."""
    joined: Arrays = {}
    for alias in tasks[0].inputs:
        arrays = [task.inputs[alias] for task in tasks]
        if surplus:
            arrays.append(np.repeat(arrays[-1][-1:], surplus, axis=0))
        shape = tuple(np.max([array.shape[1:] for array in arrays], axis=0))
        joined[alias] = np.concatenate([_widened(array, shape) for array in arrays])
    return joined


def _widened(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape[1:] == shape:
        return array
    filler = array.flat[0] if array.size else np.zeros(1, array.dtype)[0] if array.dtype != object else b""
    wide = np.full((len(array), *shape), filler, dtype=array.dtype)
    wide[tuple(slice(size) for size in array.shape)] = array
    return wide


class BatchedServable:
    """A servable whose requests wait for company.

    Only signatures whose inputs and outputs all declare a first size that varies are batched, and only requests whose
    inputs have the same number of rows, at least one; all others run by themselves. Where another size of an output
    varies too, as with a score of each candidate, inputs are not filled up: the answer would be longer than was asked.

    Args:
        servable: what runs.
        scheduler: the threads that run it.
        parameters: see `Batching`.
    """

    def __init__(self, servable: Servable, scheduler: BatchScheduler, parameters: Batching) -> None:
        self._servable = servable
        self._scheduler = scheduler
        self._parameters = parameters
        self.signatures: Mapping[str, Signature] = servable.signatures
        self.signature_def = servable.signature_def
        self.signature_def_json = servable.signature_def_json
        self._queues = {
            name: scheduler.add(self._runner(name), parameters)
            for name, signature in servable.signatures.items()
            if _can_be_batched(signature)
        }

        self._filling = {
            name
            for name in self._queues
            if parameters.pad_variable_length_inputs and _answers_stay(self.signatures[name])
        }

    def _runner(self, name: str) -> Callable[[Mapping[str, np.ndarray]], Arrays]:
        return lambda inputs: self._servable.run(name, inputs)

    def run(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Runs one signature, together with what else asks for it now."""
        waiters: list[threading.Event] = []

        def waiter() -> threading.Event:
            waiters.append(threading.Event())
            return waiters[-1]

        tasks = self._enqueue(signature_name, inputs, waiter)
        if tasks is None:
            return self._servable.run(signature_name, inputs)
        for each in waiters:
            each.wait()
        return _result(tasks)

    async def run_async(self, signature_name: str, inputs: Mapping[str, np.ndarray], executor: Executor) -> Arrays:
        """As `run`, from an event loop: no thread waits for the batch.

        Args:
            signature_name: one of `signatures`.
            inputs: an array for each of its inputs, of its type.
            executor: runs what is not batched.
        """
        loop = asyncio.get_running_loop()
        waiters: list[asyncio.Future[None]] = []

        def waiter() -> asyncio.Future[None]:
            waiters.append(loop.create_future())
            return waiters[-1]

        tasks = self._enqueue(signature_name, inputs, waiter)
        if tasks is None:
            return await loop.run_in_executor(executor, self._servable.run, signature_name, inputs)
        for each in waiters:
            await each
        return _result(tasks)

    def _enqueue(
        self, signature_name: str, inputs: Mapping[str, np.ndarray], waiter: Callable[[], _Waiter]
    ) -> list[_Task] | None:
        """The request in its queue, in parts if it is large; None where it runs by itself."""
        queue = self._queues.get(signature_name)
        if queue is None or any(array.ndim == 0 for array in inputs.values()):
            return None
        rows = {len(array) for array in inputs.values()}
        if len(rows) > 1:
            raise invalid_argument("Batching input tensors supplied in a given call must have equal 0th-dimension size")
        (count,) = rows
        if count == 0:
            return None
        limit = self._parameters.max_batch_size
        if count > limit and not self._parameters.enable_large_batch_splitting:
            raise invalid_argument(f"Task size {count} is larger than maximum input batch size {limit}")
        key, expires, step = self._key(signature_name, inputs), time_limit.get(), self._parameters.largest_batch
        starts = range(0, count, step)
        parts = [{alias: array[start : start + step] for alias, array in inputs.items()} for start in starts]
        tasks = [
            _Task(part, min(step, count - start), key, expires, waiter())
            for start, part in zip(starts, parts, strict=True)
        ]
        self._scheduler.enqueue(queue, tasks)
        return tasks

    def _key(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> _Key:
        """Requests with the same key may share a batch."""
        if signature_name in self._filling:
            return tuple((alias, (array.ndim,)) for alias, array in inputs.items())
        return tuple((alias, array.shape[1:]) for alias, array in inputs.items())

    def close(self) -> None:
        """Frees the servable."""
        self._scheduler.remove(list(self._queues.values()))
        self._servable.close()


def _result(tasks: Sequence[_Task]) -> Arrays:
    """What all parts of a request that is done gave, one behind the other."""
    results = [task.result() for task in tasks]
    if len(results) == 1:
        return results[0]
    return {alias: np.concatenate([result[alias] for result in results]) for alias in results[0]}


def _can_be_batched(signature: Signature) -> bool:
    tensors = [*signature.inputs.values(), *signature.outputs.values()]
    return bool(signature.inputs and signature.outputs) and all(
        tensor.shape is not None and len(tensor.shape) > 0 and tensor.shape[0] == -1 for tensor in tensors
    )


def _answers_stay(signature: Signature) -> bool:
    """Whether no size of an output but the first can depend on the lengths of the inputs."""
    return all(tensor.shape is not None and -1 not in tensor.shape[1:] for tensor in signature.outputs.values())
