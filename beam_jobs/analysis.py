"""What is fitted on the training split and the catalogue: in one place, from sorted parts: equal bytes."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_jobs import encoders, quantizers
from beam_jobs.arranging import ITEM_IDS
from beam_jobs.binning import fit_bins, fit_standard
from beam_jobs.encoding import as_array, stack_vectors
from beam_jobs.growth import Growth, append_new
from beam_jobs.hashing import hash_ids
from beam_jobs.pretrained import specification
from beam_jobs.staging import all_item_ids, positions, read_frame
from beam_jobs.vocabularies import given_values
from tfrec.config import COUNTER_BOUNDARIES, Config, FeatureConfig, ItemIds, suggest
from tfrec.errors import UserError
from tfrec.schema import ITEM_ID, Feature, Side
from tfrec.transforms import (
    FIRST_VALUE,
    UNKNOWN,
    Cross,
    Encoder,
    EventCounter,
    Hashed,
    Standard,
    TfidfSvd,
    Transform,
    Vocabulary,
    write_arrays,
    write_values,
)

logger = logging.getLogger("beam_jobs")

_MOST_EVENT_TYPES = 10_000
ITEM_CODES, MISSING_ITEMS = "item_codes.npy", "99999.arrow"


@dataclass
class Fitted:
    """What came out of the fits."""

    features: tuple[Feature, ...]
    event_types: tuple[str, ...]
    train_count: NDArray[np.int64]
    """`(num_items,)` training events of each item code."""
    retired: NDArray[np.bool_]
    """`(num_items,)` items of an older dataset that no log names any more: they keep their codes and nothing else."""
    quality: dict[str, Any]
    """Of each quantised feature, for the statistics."""


def fit(staging: Path, directory: Path, config: Config, growth: Growth | None = None) -> Fitted:
    """Fits everything and writes vocabularies and artefacts below `directory`, the codes of items to `staging`.

    With `growth` the older dataset's values keep their codes, new ones come behind them, and all else is taken over.
    """
    ids, train_count, retired = fit_item_ids(staging, config.features.item_id, growth)
    item_id = Feature(
        name=ITEM_ID,
        side="item",
        kind="categorical",
        column=ITEM_ID,
        transform=_write_vocabulary(directory, ITEM_ID, ids),
    )
    quality: dict[str, Any] = {}
    features = [item_id]
    sides: tuple[tuple[Side, tuple[FeatureConfig, ...]], ...] = (
        ("item", config.features.items),
        ("user", config.features.users),
        ("event", config.features.events),
    )
    for side, settings in sides:
        for one in settings:
            kept = growth.kept(one.name) if growth else None
            if growth and kept:
                growth.copy_files(kept, directory)
                features.append(kept)
                continue
            feature = _fit_feature(staging, directory, side, one, config.features.fit_sample, quality)
            features.append(growth.extend(feature, directory, one.max_size) if growth else feature)
    types = rank_values(read_parts(staging, "event_type"), 1, _MOST_EVENT_TYPES + 1).to_list()
    if growth:
        types = append_new(growth.schema.event_types, types, _MOST_EVENT_TYPES + 1)
    if len(types) > _MOST_EVENT_TYPES:
        raise UserError(
            f"`data.events.columns.event_type`: more than {_MOST_EVENT_TYPES:,} types, such as {types[-1]!r}; name a "
            "column of types, or make it a feature of events."
        )
    _check_counted_types(features, types)
    return Fitted(tuple(features), tuple(types), train_count, retired, quality)


def _check_counted_types(features: Iterable[Feature], types: Sequence[str]) -> None:
    for feature in features:
        for name in getattr(feature.transform, "event_types", None) or ():
            if name not in types:
                raise UserError(
                    f"`features.events` {feature.name}: no training event of type `{name}`; {suggest(name, types)}"
                )


def _fit_feature(
    staging: Path, directory: Path, side: Side, feature: FeatureConfig, sample: int, quality: dict[str, Any]
) -> Feature:
    transform = _unfitted(directory, feature)
    if transform is not None:
        return _feature(feature, side, transform)
    if side == "item":
        return fit_item_feature(staging, directory, feature, sample, quality)
    return _fit_from_parts(directory, feature, side, read_parts(staging, f"{side}_{feature.name}"), sample)


def _unfitted(directory: Path, feature: FeatureConfig) -> Transform | None:
    """The transform of a feature that the configuration alone decides; None where the data do."""
    if feature.cross is not None and feature.hash_buckets is not None:
        first, second = feature.cross
        return Cross(cross=(first, second), hash_buckets=feature.hash_buckets)
    if feature.kind == "counter":
        assert feature.of is not None, "Asked for by the configuration."
        return EventCounter(
            of=feature.of,
            window_seconds=feature.window_seconds,
            event_types=feature.event_types,
            boundaries=feature.boundaries or COUNTER_BOUNDARIES,
        )
    if feature.hash_buckets is not None:
        return Hashed(hash_buckets=feature.hash_buckets)
    if feature.vocabulary is not None:
        return _write_vocabulary(directory, feature.name, given_values(feature))
    return None


def read_parts(staging: Path, name: str) -> pl.DataFrame:
    """The parts of one name that the buckets left, one below the other; without rows and columns where none did."""
    paths = sorted((staging / "parts").glob(f"*/{name}.arrow"))
    return pl.concat([read_frame(path) for path in paths]) if paths else pl.DataFrame()


def rank_values(counts: pl.DataFrame, min_count: int, max_size: int) -> pl.Series:
    """Values by falling count, ties by value, from parts of (value, count)."""
    if counts.is_empty():
        return pl.Series([], dtype=pl.String)
    total = counts.group_by("value").agg(pl.sum("count")).filter(pl.col("count") >= min_count)
    return total.sort(["count", "value"], descending=[True, False])["value"].head(max_size)


def fit_item_ids(
    staging: Path, settings: ItemIds, growth: Growth | None = None
) -> tuple[pl.Series, NDArray[np.int64], NDArray[np.bool_]]:
    """The catalogue by falling training count, ties by id; the count of each code; and which codes are retired.

    Of a dataset that grows, the older one's ids stand in their old places before the others.

    Writes `ITEM_CODES`, the code of each of all item ids, and `MISSING_ITEMS`, the items without a row of their own.
    """
    ids = all_item_ids(staging / ITEM_IDS)
    parts = read_parts(staging, "item")
    counts = np.bincount(parts["item"], weights=parts["train_count"], minlength=len(ids)).astype(np.int64)
    listed = np.zeros(len(ids), np.bool_)
    for path in item_buckets(staging):
        listed[positions(read_frame(path, ["item_id"])["item_id"], ids).to_numpy()] = True
    named = listed.copy()
    named[parts["item"].to_numpy()] = True
    old = _places(growth.item_ids(), ids) if growth else np.zeros(0, np.int64)
    is_new = named & (counts >= settings.min_count)
    is_new[old[old >= 0]] = False
    chosen = np.flatnonzero(is_new)
    most = max(settings.max_size - len(old), 0)
    if len(chosen) > most:
        line = (
            "item ids: %s, more than `features.item_id.max_size` (%s); those of the fewest training events are unknown"
        )
        logger.warning(line, f"{len(chosen) + len(old):,}", f"{settings.max_size:,}")
    chosen = chosen[np.argsort(-counts[chosen], kind="stable")][:most]
    places = np.append(old, chosen)  # of each code among `ids`; -1 where the id was forgotten
    if len(places) == 0:
        raise UserError("`features.item_id.min_count`: no item has so many training events; lower it.")
    catalogue = pl.DataFrame(
        {
            "item_id": ids.gather(np.maximum(places, 0)).set(pl.Series(places < 0), ""),
            "item": np.arange(len(places), dtype=np.int32) + FIRST_VALUE,
            "retired": (places < 0) | ~named[places],
        }
    )
    codes = np.full(len(ids), UNKNOWN, np.int32)
    codes[places[places >= 0]] = catalogue["item"].to_numpy()[places >= 0]
    np.save(staging / ITEM_CODES, codes)
    (staging / "items").mkdir(exist_ok=True)
    catalogue.filter((places < 0) | ~listed[places]).write_ipc(staging / "items" / MISSING_ITEMS)
    train_count = np.where(places < 0, 0, counts[places])
    retired = np.append([False, False], catalogue["retired"].to_numpy())
    return catalogue["item_id"], np.append([0, 0], train_count).astype(np.int64), retired


def _places(values: list[str], ids: pl.Series) -> NDArray[np.int64]:
    """Where each value stands among sorted ids; -1 where it does not."""
    return positions(pl.Series(values, dtype=pl.String), ids).cast(pl.Int64).fill_null(-1).to_numpy()


def item_buckets(staging: Path) -> list[Path]:
    """The buckets of the items file."""
    return [path for path in sorted((staging / "items").glob("[0-9]*.arrow")) if path.name != MISSING_ITEMS]


def read_item_column(staging: Path, name: str) -> Iterable[pl.DataFrame]:
    """`item_id` and one column of the items of the catalogue, bucket by bucket."""
    ids, codes = all_item_ids(staging / ITEM_IDS), np.load(staging / ITEM_CODES)
    for path in item_buckets(staging):
        frame = read_frame(path, ["item_id", name])
        yield frame.filter(codes[positions(frame["item_id"], ids).to_numpy()] >= FIRST_VALUE)


def fit_item_feature(
    staging: Path, directory: Path, feature: FeatureConfig, sample: int, quality: dict[str, Any]
) -> Feature:
    """Fits one feature of the catalogue, every item counting once."""
    name = f"item_{feature.name}"
    if feature.kind == "categorical":
        return _fit_from_parts(directory, feature, "item", pl.concat(_count_values(staging, name)), sample)
    known = (frame.drop_nulls(name) for frame in read_item_column(staging, name))
    samples = [sample_by_hash_and_id(frame, name, sample) for frame in known]
    values = pl.concat(samples).sort("hash", "item_id").head(sample)[name]
    if feature.kind == "numerical":
        numbers = as_array(values)
        standard = fit_standard(numbers) if feature.standardize else None
        return _feature(feature, "item", fit_bins(numbers, feature), standard=standard)
    return _fit_vectors(directory, feature, values, quality)


def sample_by_hash_and_id(frame: pl.DataFrame, name: str, size: int) -> pl.DataFrame:
    """The rows whose ids have the smallest hashes."""
    return (
        frame.with_columns(pl.Series("hash", hash_ids(frame["item_id"])))
        .sort("hash", "item_id")
        .head(size)
        .select("hash", "item_id", name)
    )


def _count_values(staging: Path, name: str) -> list[pl.DataFrame]:
    parts = [pl.DataFrame(schema={"value": pl.String, "count": pl.Int64})]
    for frame in read_item_column(staging, name):
        values = frame[name]
        if isinstance(values.dtype, pl.List):
            values = values.explode(empty_as_null=False, keep_nulls=False)
        counts = values.drop_nulls().value_counts(name="count")
        parts.append(counts.select(pl.col(name).alias("value"), pl.col("count").cast(pl.Int64)))
    return parts


def _fit_from_parts(directory: Path, feature: FeatureConfig, side: Side, parts: pl.DataFrame, sample: int) -> Feature:
    if feature.kind == "categorical":
        values = rank_values(parts, feature.min_count, feature.max_size + 1)
        if len(values) > feature.max_size:
            line = "feature %s: more than %s values (`max_size`); the rarest are unknown"
            logger.warning(line, feature.name, f"{feature.max_size:,}")
            values = values.head(feature.max_size)
        return _feature(feature, side, _write_vocabulary(directory, feature.name, values))
    chosen = parts.sort("hash", "value")["value"].head(sample) if len(parts) else pl.Series([], dtype=pl.Float64)
    return _feature(feature, side, fit_bins(as_array(chosen), feature))


def _fit_vectors(directory: Path, feature: FeatureConfig, values: pl.Series, quality: dict[str, Any]) -> Feature:
    encoder: Encoder | None = None
    if len(values) == 0:
        raise UserError(f"`features.items` {feature.name}: no item of the catalogue has a value.")
    if feature.encoder is not None:
        encoder, vectors = specification(feature.encoder), stack_vectors(values, feature.dim)
    elif feature.kind == "text":
        fitted_encoder = _fit_encoder(directory, feature, values.to_list())
        encoder, vectors = fitted_encoder, fitted_encoder.encode(values.to_list(), directory)
    else:
        vectors = stack_vectors(values, feature.dim)
    vectors = vectors[~np.isnan(vectors).any(axis=1)]
    if len(vectors) == 0:
        raise UserError(f"`features.items` {feature.name}: no item has a text with a word that occurs twice.")
    transform, fitted = quantizers.fit_quantizer(vectors, feature)
    write_arrays(directory / transform.file, fitted)
    quality[feature.name] = quantizers.quality(transform.encode(vectors, directory), vectors, transform, fitted)
    return _feature(feature, "item", transform, encoder)


def _fit_encoder(directory: Path, feature: FeatureConfig, texts: list[str]) -> TfidfSvd:
    words, arrays = encoders.fit_tfidf_svd(texts, feature.dim)
    encoder = TfidfSvd(
        vocabulary=f"vocabularies/{feature.name}.words.txt", file=f"artifacts/{feature.name}.words.npz", dim=feature.dim
    )
    write_values(directory / encoder.vocabulary, words)
    write_arrays(directory / encoder.file, arrays)
    return encoder


def _write_vocabulary(directory: Path, name: str, values: pl.Series | list[str]) -> Vocabulary:
    file = f"vocabularies/{name}.txt"
    write_values(directory / file, values)
    return Vocabulary(file=file, size=len(values) + FIRST_VALUE)


def _feature(
    feature: FeatureConfig,
    side: Side,
    transform: Transform,
    encoder: Encoder | None = None,
    standard: Standard | None = None,
) -> Feature:
    num_codes = feature.max_values if feature.multivalued else len(transform.table_sizes)
    return Feature(
        name=feature.name,
        side=side,
        kind=feature.kind,
        column=feature.column or feature.name,
        transform=transform,
        multivalued=feature.multivalued,
        separator=feature.separator,
        weight_separator=feature.weight_separator,
        num_codes=num_codes,
        encoder=encoder,
        keep_vectors=feature.keep_vectors,
        standard=standard,
    )
