"""Requests and answers recorded as TensorFlow Serving records them: TFRecord files of PredictionLog.

Such a file can be given to a version as its warm-up requests, and `tfrec replay` asks what it holds again.
"""

import logging
import queue
import random
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.settings import RequestLogging
from serving.signatures import Tensor
from serving.tensor_proto import fill_proto

_LOGGER = logging.getLogger("serving")
_MAX_WAITING = 1000


class RequestLog:
    """Writes a sample of what it is offered, in a thread of its own: requests never wait for the disk.

    Args:
        logging: where, and how many.
    """

    def __init__(self, logging: RequestLogging) -> None:
        self._options = logging
        self._random = random.Random(logging.seed)
        self._lock = threading.Lock()
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_MAX_WAITING)
        self.dropped = 0
        logging.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._write_all, name="request log", daemon=True)
        self._thread.start()

    def wants_next(self) -> bool:
        """Whether the next request is among those that are recorded."""
        with self._lock:
            return self._random.random() < self._options.sampling_rate

    def offer(self, log: Any) -> None:
        """Records a PredictionLog, unless too many wait already."""
        log.log_metadata.sampling_config.sampling_rate = self._options.sampling_rate
        try:
            self._waiting.put_nowait(log.SerializeToString())
        except queue.Full:
            with self._lock:
                self.dropped += 1

    def close(self) -> None:
        """Writes what waits, then ends."""
        self._waiting.put(None)
        self._thread.join()
        if self.dropped:
            _LOGGER.warning("the request log left out %d requests that came too fast", self.dropped)

    def _write_all(self) -> None:
        try:
            for number in range(self._options.max_files):
                if not self._write_file(number):
                    return
            _LOGGER.warning("the request log is full (%d files)", self._options.max_files)
        except (OSError, tf.errors.OpError) as error:
            _LOGGER.error("the request log cannot be written (%s)", type(error).__name__)
        while self._waiting.get() is not None:
            self.dropped += 1

    def _write_file(self, number: int) -> bool:
        """Fills one file; returns whether more is to come."""
        size = 0
        with tf.io.TFRecordWriter(str(file_of(self._options.prefix, number))) as writer:
            while size < self._options.max_file_bytes:
                record = self._waiting.get()
                if record is None:
                    return False
                writer.write(record)
                writer.flush()
                size += len(record)
        return True


def file_of(prefix: Path, number: int) -> Path:
    """The name of one file of a log."""
    return prefix.with_name(f"{prefix.name}-{number:05d}.tfrecord")


def predict_log(
    spec: Any, inputs: Mapping[str, np.ndarray], types: Mapping[str, Tensor], answer: Mapping[str, np.ndarray],
    answer_types: Mapping[str, Tensor],
) -> Any:  # fmt: skip
    """The PredictionLog of a predict request that came as JSON.

    Args:
        spec: the ModelSpec of model, version and signature that answered.
        inputs: what was asked.
        types: the signature's inputs.
        answer: what was answered.
        answer_types: the signature's outputs.
    """
    log = prediction_log_pb2.PredictionLog()
    log.log_metadata.model_spec.CopyFrom(spec)
    log.predict_log.request.model_spec.CopyFrom(spec)
    log.predict_log.response.model_spec.CopyFrom(spec)
    for alias, array in inputs.items():
        fill_proto(log.predict_log.request.inputs[alias], array, types[alias].type_code)
    for alias, array in answer.items():
        fill_proto(log.predict_log.response.outputs[alias], array, answer_types[alias].type_code)
    return log
