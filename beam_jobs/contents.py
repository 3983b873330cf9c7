"""Texts and images to vectors within the first pipeline: Beam's RunInference over batches of checked rows."""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import polars as pl
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import ModelHandler
from numpy.typing import NDArray

from beam_jobs.pretrained import Encoder, encode, load_encoder
from beam_jobs.sources import ROW
from beam_jobs.validation import REJECT_SCHEMA, Field, empty_rejects
from tfrec.config import FeatureConfig

_IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Encoded:
    """Rows whose contents are vectors now."""

    frame: pl.DataFrame
    missing: pl.DataFrame
    """Values that have no vector, as rejects without a file: their rows stay."""


@dataclass
class Encoders:
    """What a worker has loaded."""

    by_column: Mapping[str, Encoder]


class EncodeContents(ModelHandler[pl.DataFrame, Encoded, Encoders]):
    """Checked rows to rows with a list of float32 in place of each text or image; null where there is none.

    An element is a batch of rows, cut into the encoders' own batches here: which values share one does not depend on
    the runner, so neither do the last bits of a vector.

    Args:
        fields: of the columns to encode, with their encoders.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        super().__init__()
        self.fields = tuple(fields)

    def load_model(self) -> Encoders:
        """The encoders, loaded once a worker."""
        return Encoders({field.name: load_encoder(_feature(field)) for field in self.fields})

    def run_inference(
        self,
        batch: Sequence[pl.DataFrame],
        model: Encoders,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[Encoded]:
        """The encoded rows of each frame."""
        return [encode_contents(frame, self.fields, model.by_column) for frame in batch]

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """An element is a batch already."""
        return {"min_batch_size": 1, "max_batch_size": 1}

    def get_num_bytes(self, batch: Sequence[pl.DataFrame]) -> int:
        """For Beam's metrics."""
        return sum(int(frame.estimated_size()) for frame in batch)


def encode_contents(frame: pl.DataFrame, fields: Sequence[Field], encoders: Mapping[str, Encoder]) -> Encoded:
    """Replaces the columns of `fields` in some checked rows by vectors."""
    missing = [empty_rejects()]
    for field in fields if len(frame) else ():
        vectors, rules = _vectors(frame[field.name], _feature(field), encoders[field.name])
        broken = frame.select(ROW, pl.Series("value", _shown(frame[field.name], rules)), pl.Series("rule", rules))
        missing.append(_rejects(broken.drop_nulls("rule"), field.column))
        frame = frame.with_columns(vectors.alias(field.name))
    return Encoded(frame, pl.concat(missing))


def _feature(field: Field) -> FeatureConfig:
    assert field.feature is not None, "A field whose content is encoded names its feature."
    return field.feature


def _vectors(values: pl.Series, feature: FeatureConfig, encoder: Encoder) -> tuple[pl.Series, list[str | None]]:
    """Vectors, and of each value the rule that it breaks."""
    rules: list[str | None] = [None] * len(values)
    vectors = np.full((len(values), feature.dim), np.nan, np.float32)
    places = np.flatnonzero(values.is_not_null())
    for start in range(0, len(places), _IMAGES_AT_ONCE):
        chosen = places[start : start + _IMAGES_AT_ONCE]
        if feature.kind == "image":
            images = [_image(value, feature, encoder.image_size) for value in values[chosen.tolist()]]
            for place, image in zip(chosen, images, strict=True):
                rules[place] = image if isinstance(image, str) else None
            chosen = chosen[[not isinstance(image, str) for image in images]]
            array = np.array([image for image in images if not isinstance(image, str)], np.uint8)
        else:
            array = np.array(values[chosen.tolist()].to_list(), object)
        if len(chosen):
            vectors[chosen] = encode(encoder, array, feature)
        for place in chosen[~np.isfinite(vectors[chosen]).all(axis=1)]:
            rules[place] = "the encoder gives no finite vector"
    known = np.isfinite(vectors).all(axis=1)
    lists = pl.Series(vectors, dtype=pl.Array(pl.Float32, feature.dim)).cast(pl.List(pl.Float32))
    return lists.set(pl.Series(~known), None), rules


def _image(value: str | bytes, feature: FeatureConfig, size: tuple[int, int]) -> NDArray[np.uint8] | str:
    """An image `(height, width, 3)`, or the rule that it breaks."""
    assert feature.encoder is not None, "An image has an encoder."
    if isinstance(value, str):
        path = value if "://" in value else str(PurePath(feature.encoder.folder, value))
        if "://" in feature.encoder.folder:
            path = FileSystems.join(feature.encoder.folder, value)
        try:
            with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
                value = file.read()
        except OSError:
            return "must be the path of an image that can be read"
    return decode_image(value, size)


def decode_image(content: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | str:
    """An image of any format that Pillow reads, scaled to `(height, width, 3)`, or the rule that it breaks."""
    from PIL import Image

    height, width = size
    try:
        with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (width, height))
            scaled = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(scaled, np.uint8)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"must be an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels"
    except Exception:  # decoders raise whatever they like at bytes that somebody made up
        return "must be an image that decodes"


def _shown(values: pl.Series, rules: Sequence[str | None]) -> pl.Series:
    shown = [_text(value) if rule else None for value, rule in zip(values, rules, strict=True)]
    return pl.Series("value", shown, dtype=pl.String)


def _text(value: str | bytes) -> str:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else value[:200]


def _rejects(broken: pl.DataFrame, column: str) -> pl.DataFrame:
    return broken.select(
        pl.lit("").alias("file"), pl.col(ROW).alias("row"), pl.lit(column).alias("column"), "value", "rule"
    ).cast(REJECT_SCHEMA)  # type: ignore[arg-type]  # polars' own types by name
