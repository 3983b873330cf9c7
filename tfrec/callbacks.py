"""What happens between two steps of a training: interruptions are heeded, losses looked at, progress shown."""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether someone asked the training to stop (Ctrl-C, SIGTERM); a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Turns signals into `requested` for as long as the block runs; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Display:
    """A progress bar and one line an epoch, on stderr; nothing where `shown` is False.

    Args:
        shown: show anything at all.
        epochs: epochs of the whole training.
        batch_size: rows a step, for the speed.
    """

    def __init__(self, *, shown: bool, epochs: int, batch_size: int) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.console = Console(file=sys.stderr, quiet=not shown, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._begun = self._last = 0.0
        self._first = self._steps = 0

    @contextmanager
    def epoch(self, number: int, first: int, steps: int) -> Iterator[None]:
        """Shows the bar of epoch `number` (from 1), which goes on at step `first` of `steps`."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]}  {task.fields[speed]} examples/s"),
            TimeRemainingColumn(),
        )
        visible = self.console.is_terminal and not self.console.quiet
        self._begun, self._first, self._steps = time.monotonic(), first, first
        self._last = self._begun
        with Progress(*columns, console=self.console, transient=True, disable=not visible) as bar:
            description = f"epoch {number}/{self.epochs}"
            self._task = bar.add_task(description, total=steps, completed=first, loss="-", speed="-")
            self._bar = bar
            yield
        self._bar = None

    def step(self, steps: int, loss: float) -> None:
        """The bar moves to `steps` of the epoch."""
        self._steps, self._last = max(self._steps, steps), time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._steps, loss=f"{loss:.4f}", speed=f"{self.speed():,.0f}")

    def speed(self) -> float:
        """Examples a second, from the beginning of the epoch (or what is left of it) to its latest step."""
        return (self._steps - self._first) * self.batch_size / max(self._last - self._begun, 1e-9)

    def line(self, text: str) -> None:
        """One line above the bar."""
        self.console.print(text, markup=False)


class StepWatch(keras.callbacks.Callback):
    """Stops the epoch on an interruption or a loss that is not finite, keeps the weights, moves the bar.

    Keras calls `on_train_batch_end` in other threads, in any order, so that reading the loss does not hold up the next
    step; what it finds is therefore kept by step.

    Args:
        trained: the model; `Callback.model` would copy its state from the device at each step.
        interruption: see there.
        display: see there.
        first: batches of the epoch that were taken before.
        metrics: values that the running metrics go on from; None = from nothing.
        keep_weights: copy the weights before Keras overwrites them with their moving average.
    """

    async_safe = True

    def __init__(
        self,
        trained: keras.Model,
        interruption: Interruption,
        display: Display,
        *,
        first: int = 0,
        metrics: list[Any] | None = None,
        keep_weights: bool = False,
    ) -> None:
        super().__init__()
        self.trained = trained
        self.interruption = interruption
        self.display = display
        self.first = first
        self.metrics = metrics
        self.keep_weights = keep_weights
        self.weights: list[Any] = []
        self.not_finite: int | None = None
        """First batch of the epoch whose loss is not finite."""
        self._lock = threading.Lock()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Running metrics go on from where an interrupted epoch left them."""
        for variable, value in zip(self.trained.metrics_variables, self.metrics or [], strict=False):
            variable.assign(value)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Asks Keras to leave the epoch after this step."""
        if self.interruption.requested or self.not_finite is not None:
            self.trained.stop_training = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Looks at the running loss, which stays NaN once it was."""
        loss, done = float((logs or {}).get("loss", 0.0)), self.first + batch + 1
        with self._lock:
            if not math.isfinite(loss):
                self.not_finite = done if self.not_finite is None else min(done, self.not_finite)
            self.display.step(done, loss)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps the weights: when `fit` returns, the model holds their moving average."""
        if self.keep_weights:
            self.weights = [keras.ops.convert_to_numpy(variable) for variable in self.trained.trainable_variables]
