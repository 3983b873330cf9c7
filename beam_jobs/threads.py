"""Elements of a bundle worked on in threads: polars, NumPy and Arrow let other threads of the process go on."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import polars as pl
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue


class InThreads(beam.DoFn):
    """A step whose `work` on one element goes on while the next elements come in; outputs keep their order.

    As many elements at once as polars has threads (`POLARS_MAX_THREADS`); where that is one, there is no other thread,
    and an element is worked on as it comes in. Elements and outputs are of the global window.
    """

    @abstractmethod
    def work(self, element: Any) -> list[Any]:
        """The outputs of an element; may run in another thread, so without a lazy part of what Beam gave."""

    def setup(self) -> None:
        """Makes the threads."""
        self._threads = pl.thread_pool_size()
        self._pool = ThreadPoolExecutor(self._threads)

    def start_bundle(self) -> None:
        """Nothing is under way."""
        self._ahead: deque[Future[list[Any]]] = deque()

    def process(self, element: Any) -> Iterator[Any]:
        """Begins with an element, and yields the outputs of those that are due."""
        if self._threads == 1:
            yield from self.work(element)
            return
        self._ahead.append(self._pool.submit(self.work, element))
        while len(self._ahead) > self._threads:
            yield from self._next()

    def finish_bundle(self) -> Iterator[Any]:
        """Yields the outputs of all others."""
        while self._ahead:
            for output in self._next():
                if isinstance(output, beam.pvalue.TaggedOutput):
                    yield beam.pvalue.TaggedOutput(output.tag, _in_global_window(output.value))
                else:
                    yield _in_global_window(output)

    def teardown(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self) -> list[Any]:
        try:
            return self._ahead.popleft().result()
        except BaseException:
            self._pool.shutdown(cancel_futures=True)  # nothing is written any more once the job cleans up
            raise


def _in_global_window(value: Any) -> WindowedValue:
    window = GlobalWindow()
    return WindowedValue(value, window.max_timestamp(), (window,))
