"""Tables of BigQuery as logs, by Beam's own IO: its storage API sends the columns that are asked for, and no others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import polars as pl

from beam_jobs.sources import BIGQUERY, ROW, Batch, LogFile

_ROWS_AT_ONCE = 50_000


def as_batch(rows: Sequence[dict[str, Any]], file: LogFile, columns: Sequence[str]) -> Batch:
    """Some rows of a table, counted from 1: rows of a table have no order."""
    frame = pl.DataFrame({name: pl.Series([row.get(name) for row in rows], strict=False) for name in columns})
    return Batch(file, frame.with_columns(pl.int_range(1, len(rows) + 1, dtype=pl.Int64).alias(ROW)))


@dataclass
class ReadTable(beam.PTransform[Any, Any]):
    """Pipeline → PCollection[Batch]: the rows of a table, `columns` alone."""

    file: LogFile
    columns: Sequence[str]

    def expand(self, pipeline: Any) -> Any:
        """Wires Beam's reading and the batches."""
        read = beam.io.ReadFromBigQuery(
            method=beam.io.ReadFromBigQuery.Method.DIRECT_READ,
            table=":".join(self.file.path.removeprefix(BIGQUERY).split(".", 1)),
            selected_fields=list(self.columns),
            use_native_datetime=True,
        )
        batches = beam.BatchElements(min_batch_size=_ROWS_AT_ONCE // 10, max_batch_size=_ROWS_AT_ONCE)
        return (
            pipeline
            | "Read rows" >> read
            | "Batch rows" >> batches
            | "Make frames" >> beam.Map(lambda rows: as_batch(rows, self.file, self.columns))
        )
