"""From a version directory to what answers: admitted, loaded, warmed up, and batched where that is wanted."""

import time
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving import servable as saved_model
from serving.batching import BatchedServable, BatchScheduler
from serving.inference import Inference
from serving.metrics import Metrics
from serving.settings import Batching, Settings
from serving.signatures import Servable
from serving.status import Code, ServingError, invalid_argument
from serving.tensor_proto import run_predict
from serving.text_protos import read_batching
from tfrec.errors import UserError

BATCHING_PARAMETERS = "batching_params.pbtxt"
_MAX_WARMUP_RECORDS = 1000


class Loader:
    """Loads version directories.

    Args:
        settings: how to warm up and whether to batch.
        scheduler: runs batches; None = nothing is batched.
        metrics: where the time of warm-ups is told.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        scheduler: BatchScheduler | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._scheduler = scheduler
        self._metrics = metrics or Metrics()

    def __call__(self, directory: Path) -> Servable:
        """Loads a version and replays its warm-up requests; a failing one fails the load."""
        batching = self._batching(directory)
        loaded: Servable = saved_model.SavedModelServable(
            directory,
            intra_op_threads=self._settings.intra_op_threads,
            inter_op_threads=self._settings.inter_op_threads,
        )
        try:
            if self._settings.warmup:
                started = time.perf_counter()
                warm_up(loaded, saved_model.read_warmup(directory), self._settings)
                micros = 1e6 * (time.perf_counter() - started)
                name = "/tensorflow/serving/model_warmup_latency"
                self._metrics.observe(name, micros, model_path=directory.parent.name, status="OK")
            if self._scheduler is not None and batching is not None:
                loaded = BatchedServable(loaded, self._scheduler, batching)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _batching(self, directory: Path) -> Batching | None:
        own = directory / BATCHING_PARAMETERS
        if not (self._settings.per_model_batching and own.is_file()):
            return self._settings.batching
        try:
            return read_batching(own)
        except UserError as error:
            raise invalid_argument(str(error)) from None


def warm_up(servable: Servable, records: Iterator[bytes], settings: Settings) -> None:
    """Replays serialised PredictionLog records.

    Raises:
        ServingError: a record cannot be parsed, is of a kind that is not replayed, fails, or is one too many.
    """
    inference = Inference(check_method_names=settings.check_method_names)
    for number, record in enumerate(records):
        if number == _MAX_WARMUP_RECORDS:
            raise invalid_argument(f"Number of warmup records exceeds the maximum ({_MAX_WARMUP_RECORDS}).")
        log = prediction_log_pb2.PredictionLog()
        try:
            log.ParseFromString(record)
        except DecodeError:
            raise invalid_argument(f"Failed to parse warmup record {number}.") from None
        try:
            for _ in range(max(1, settings.warmup_iterations)):
                _replay(servable, inference, log)
        except ServingError as error:
            raise ServingError(error.code, f"Warmup record {number} failed: {error.message}") from None


def _replay(servable: Servable, inference: Inference, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        run_predict(servable, log.predict_log.request)
    elif kind == "classify_log":
        request = log.classify_log.request
        inference.classify(servable, request.model_spec.signature_name, request.input)
    elif kind == "regress_log":
        request = log.regress_log.request
        inference.regress(servable, request.model_spec.signature_name, request.input)
    elif kind == "multi_inference_log":
        inference.multi(servable, log.multi_inference_log.request)
    else:
        raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
