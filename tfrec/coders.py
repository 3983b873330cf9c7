"""Raw values to codes as TensorFlow ops, of new items and users in an exported model.

Every coder gives the codes that the NumPy transform of `tfrec.transforms` gives for the same value. Importing this
module imports TensorFlow.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec.hashing import KEY
from tfrec.schema import WEIGHTS, Feature
from tfrec.transforms import (
    FIRST_VALUE,
    MOST_DEVIATIONS,
    PADDING,
    UNKNOWN,
    Bins,
    Cross,
    EventCounter,
    GroupQuantiles,
    Hashed,
    ProductCodes,
    ResidualCodes,
    Standard,
    VectorTransform,
    Vocabulary,
    present_rows,
)

Tensor = Any
_ESCAPED = ((r"\\", r"\\\\"), ("\n", r"\\n"), ("\r", r"\\r"), ("\t", r"\\t"))  # patterns and rewrites of RE2


class VocabularyCoder(tf.Module):
    """Strings of any shape to int32 codes; the empty string is unknown.

    The table is read from the vocabulary file, which becomes an asset of the SavedModel. Its lines are escaped, so
    the graph escapes what it looks up; where no line holds an escape, a value that needs one is unknown either way
    and the graph looks up values as they are.

    Args:
        transform: the vocabulary.
        directory: of the dataset.
    """

    def __init__(self, transform: Vocabulary, directory: Path) -> None:
        super().__init__()
        self.table = None
        self.holds_escapes = False
        if transform.size > FIRST_VALUE:
            self.holds_escapes = b"\\" in (directory / transform.file).read_bytes()
            # A path given as a string becomes an asset through a tracked variable that tf.lookup makes itself.
            lines = tf.lookup.TextFileInitializer(
                str(directory / transform.file),
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
                value_index_offset=FIRST_VALUE,
            )
            self.table = tf.lookup.StaticHashTable(lines, UNKNOWN)

    def __call__(self, values: Tensor) -> Tensor:
        """Codes of the same shape."""
        if self.table is None:
            return tf.fill(tf.shape(values), UNKNOWN)
        escaped = values
        for pattern, rewrite in _ESCAPED if self.holds_escapes else ():
            escaped = tf.strings.regex_replace(escaped, pattern, rewrite)
        codes = tf.cast(self.table.lookup(escaped), tf.int32)
        return tf.where(values == "", UNKNOWN, codes)


class HashCoder(tf.Module):
    """Strings of any shape to the int32 codes of their buckets; the empty string is missing.

    Args:
        num_buckets: of the transform.
    """

    def __init__(self, num_buckets: int) -> None:
        super().__init__()
        self.num_buckets = num_buckets

    def __call__(self, values: Tensor) -> Tensor:
        """Codes of the same shape."""
        buckets = tf.strings.to_hash_bucket_strong(values, self.num_buckets, list(KEY))
        return tf.where(values == "", UNKNOWN, tf.cast(buckets, tf.int32) + FIRST_VALUE)


class BinsCoder(tf.Module):
    """Numbers of any shape to int32 codes; NaN is missing.

    They are float64 as in the dataset's job: a boundary is often a price that many items have, and 9.99 in float32
    lies on the other side of it.

    Args:
        transform: the bins.
    """

    def __init__(self, transform: Bins) -> None:
        super().__init__()
        self.boundaries = np.array(transform.boundaries, np.float64)

    def __call__(self, values: Tensor) -> Tensor:
        """Codes of the same shape."""
        values = tf.cast(values, tf.float64)
        bins = tf.searchsorted(self.boundaries, tf.reshape(values, [-1]), side="right")
        return tf.where(tf.math.is_nan(values), UNKNOWN, tf.reshape(bins, tf.shape(values)) + FIRST_VALUE)


class VectorCoder(tf.Module):
    """Vectors `(N, input_dim)` to int32 codes `(N, codes)`; a vector that is not finite is missing.

    Args:
        transform: the quantiser.
        directory: of the dataset.
    """

    def __init__(self, transform: VectorTransform, directory: Path) -> None:
        super().__init__()
        self.transform = transform
        fitted = transform.arrays(directory)
        self.mean = _constant(fitted["mean"], "mean")
        self.rotation = _constant(fitted["rotation"], "rotation") if "rotation" in fitted else None
        self.edges = _constant(fitted["edges"], "edges") if "edges" in fitted else None
        means = enumerate(map(present_rows, fitted.get("centroids", ())))
        self.centroids = [_constant(rows, f"centroids_{place}") for place, rows in means]

    def __call__(self, vectors: Tensor) -> Tensor:
        """Codes `(N, codes)`."""
        missing = tf.reduce_any(~tf.math.is_finite(vectors), axis=1, keepdims=True)
        present = tf.cast(tf.where(missing, tf.zeros_like(vectors), vectors), tf.float64)
        centred = present - self.mean
        match self.transform:
            case GroupQuantiles():
                cells = self._bins(self.transform, tf.matmul(centred, self.rotation))
            case ProductCodes():
                cells = self._nearest_in_groups(tf.matmul(centred, self.rotation))
            case ResidualCodes():
                cells = self._nearest_by_level(centred)
        return tf.where(missing, UNKNOWN, cells + FIRST_VALUE)

    def _bins(self, transform: GroupQuantiles, rotated: Tensor) -> Tensor:
        bins = tf.transpose(tf.searchsorted(self.edges, tf.transpose(rotated), side="right"))
        bins = tf.reshape(bins, [-1, transform.groups, transform.dims_per_group])
        weights = transform.quantiles ** np.arange(transform.dims_per_group, dtype=np.int32)
        return tf.reduce_sum(bins * weights, axis=2)

    def _nearest_in_groups(self, rotated: Tensor) -> Tensor:
        parts = tf.split(rotated, len(self.centroids), axis=1)
        return tf.stack([_nearest(part, means) for part, means in zip(parts, self.centroids, strict=True)], axis=1)

    def _nearest_by_level(self, rest: Tensor) -> Tensor:
        columns = []
        for means in self.centroids:
            columns.append(_nearest(rest, means))
            rest = rest - tf.gather(means.read_value(), columns[-1])
        return tf.stack(columns, axis=1)


def _constant(array: np.ndarray[Any, Any], name: str) -> tf.Variable:
    return tf.Variable(array.astype(np.float64), trainable=False, name=name)


def _nearest(rows: Tensor, means: tf.Variable) -> Tensor:
    """The place `(N,)` of the mean that is nearest to each row; of equally near ones the first."""
    squares = tf.reduce_sum(means**2, axis=1)
    return tf.argmin(squares - 2 * tf.matmul(rows, means, transpose_b=True), axis=1, output_type=tf.int32)


Coder = VocabularyCoder | HashCoder | BinsCoder | VectorCoder


def coder(feature: Feature, directory: Path) -> Coder:
    """The coder of a feature's transform.

    Args:
        feature: of the schema.
        directory: of the dataset.
    """
    match feature.transform:
        case Vocabulary():
            return VocabularyCoder(feature.transform, directory)
        case Hashed():
            return HashCoder(feature.transform.hash_buckets)
        case Cross() | EventCounter():
            raise ValueError(f"`feature` must be made of raw values. Received: {feature.name!r}.")
        case Bins():
            return BinsCoder(feature.transform)
        case _:
            return VectorCoder(feature.transform, directory)


class FeatureCoder(tf.Module):
    """Raw values of one feature to its code columns `(..., num_codes)`.

    Raw values are strings `(...)` (categorical), strings `(..., num_codes)` padded with "" (multi-valued), float64
    `(...)` (numerical, NaN = missing), or float32 vectors `(N, input_dim)` (multimodal, and text after its encoder).

    Args:
        feature: of the schema.
        directory: of the dataset.
    """

    def __init__(self, feature: Feature, directory: Path) -> None:
        super().__init__()
        self.feature = feature
        self.coder = coder(feature, directory)

    def __call__(self, values: Tensor) -> Tensor:
        """Codes `(..., num_codes)`."""
        if isinstance(self.coder, VectorCoder):
            return self.coder(values)
        if not self.feature.multivalued:
            return self.coder(values)[..., None]
        values = self._of_width(values, "values, padded with empty strings")
        present = values != ""
        packed = _packed(tf.where(present, self.coder(values), PADDING), present)
        missing = np.array([UNKNOWN] + [PADDING] * (self.feature.num_codes - 1), np.int32)
        return tf.where(tf.reduce_any(present, axis=-1, keepdims=True), packed, missing)

    def weights(self, values: Tensor, weights: Tensor) -> Tensor:
        """Scaled weights `(..., num_codes)` of the values that have the codes, in their order.

        Args:
            values: of a multi-valued feature.
            weights: `(..., num_codes)`, above 0 where there is a value.
        """
        weights = self._of_width(weights, "weights, one a value")
        present = values != ""
        packed = _packed(tf.where(present, weights, 0.0), present)
        missing = np.array([1] + [0] * (self.feature.num_codes - 1), np.float32)
        packed = tf.where(tf.reduce_any(packed > 0, axis=-1, keepdims=True), packed, missing)
        # The exponent of the largest, from its bits: times 2 ** -exponent it lies in 0.5..1.
        largest = tf.bitcast(tf.cast(tf.reduce_max(packed, axis=-1, keepdims=True), tf.float64), tf.int64)
        places = tf.constant(52, tf.int64)
        scale = tf.bitcast(tf.bitwise.left_shift(2045 - tf.bitwise.right_shift(largest, places), places), tf.float64)
        return tf.cast(tf.cast(packed, tf.float64) * scale, tf.float32)

    def _of_width(self, values: Tensor, what: str) -> Tensor:
        """The values, if they are as many as the feature has: a session does not compare them with the signature."""
        width = self.feature.num_codes
        rule = f"{self.feature.name}: give {width} {what}."
        with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(values)[-1], width, rule)]):
            return tf.identity(values)

    def signature(self, name: str, *, events: bool = False) -> tf.TensorSpec:
        """The input that takes this feature's raw values: `(B,)`, or `(B, T)` for those of events.

        The values of a multi-valued feature have a fixed number of places: a server that pads the requests of one
        batch to one width would repeat the first value of a request, which cannot be told from a value.
        """
        shape: list[int | None] = [None, None] if events else [None]
        if isinstance(self.coder, VectorCoder):
            return tf.TensorSpec([*shape, self.feature.vector_dim], tf.float32, name)
        if isinstance(self.coder, BinsCoder):
            return tf.TensorSpec(shape, tf.float64, name)
        return tf.TensorSpec([*shape, self.feature.num_codes] if self.feature.multivalued else shape, tf.string, name)


class SideCoder(tf.Module):
    """Raw values of all features of one side to their codes, those of crosses among them; no counters.

    Args:
        features: of the schema.
        directory: of the dataset.
        prefix: of the names of the inputs.
    """

    def __init__(self, features: Sequence[Feature], directory: Path, prefix: str = "") -> None:
        super().__init__()
        self.prefix = prefix
        self.names = [one.name for one in features if not isinstance(one.transform, EventCounter)]
        self.crosses = {one.name: one.transform for one in features if isinstance(one.transform, Cross)}
        self.standards = {one.name: StandardCoder(one.standard) for one in features if one.standard is not None}
        made = (Cross, EventCounter)
        self.coders = {
            one.name: FeatureCoder(one, directory) for one in features if not isinstance(one.transform, made)
        }
        self.weighted = {one.name: one.num_codes for one in features if one.weight_separator is not None}

    def signature(self, *, events: bool = False) -> dict[str, tf.TensorSpec]:
        """The inputs by name: the raw values of the features that are no crosses."""
        names = {name: self.prefix + name for name in self.coders}
        specs = {names[name]: one.signature(names[name], events=events) for name, one in self.coders.items()}
        rows: list[int | None] = [None, None] if events else [None]
        for name, width in self.weighted.items():
            specs[names[name] + WEIGHTS] = tf.TensorSpec([*rows, width], tf.float32, names[name] + WEIGHTS)
        return specs

    def vectors(self, inputs: Mapping[str, Tensor], name: str) -> Tensor:
        """What is stored of a feature beside its codes: a vector itself, a standardised value `(N, 1)`, or weights."""
        values = inputs[self.prefix + name]
        if name in self.weighted:
            return self.weights(inputs, name)
        return self.standards[name](values) if name in self.standards else values

    def weights(self, inputs: Mapping[str, Tensor], name: str) -> Tensor:
        """Scaled weights `(..., num_codes)` of a feature whose values have some."""
        return self.coders[name].weights(inputs[self.prefix + name], inputs[self.prefix + name + WEIGHTS])

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes `(..., num_codes)` of each feature, in schema order."""
        codes = {name: one(inputs[self.prefix + name]) for name, one in self.coders.items()}
        for name, transform in self.crosses.items():
            first, second = (codes[part] for part in transform.cross)
            buckets = HashCoder(transform.hash_buckets)(
                tf.strings.join([tf.strings.as_string(first), tf.strings.as_string(second)], ",")
            )
            codes[name] = tf.where((first >= FIRST_VALUE) & (second >= FIRST_VALUE), buckets, UNKNOWN)
        return {name: codes[name] for name in self.names}


class CounterCoder(tf.Module):
    """Counts of each event's earlier ones as codes, as `tfrec.transforms.EventCounter` gives them.

    Args:
        counter: of the feature.
        types: codes of the event types that count; None = all.
        codes: `(num_items,)` of the feature that it is `of`; None = all events of a user count for each other.
    """

    def __init__(
        self, counter: EventCounter, types: Sequence[int] | None, codes: NDArray[np.int32] | None = None
    ) -> None:
        super().__init__()
        self.window = counter.window_seconds
        self.types = types
        self.bins = BinsCoder(counter.bins)
        self.codes = None
        if codes is not None:
            self.codes = tf.Variable(codes.astype(np.int32), trainable=False, name=f"codes_of_{counter.of}")

    def __call__(self, items: Tensor, seconds: Tensor | None, event_types: Tensor | None) -> Tensor:
        """Codes `(B, T)`, whatever where there is no event.

        Args:
            items: codes `(B, T)`, in the order of time; what is no event is PADDING, and stands at the end.
            seconds: `(B, T)`, not negative, below 2 ** 31; needed for a window.
            event_types: codes `(B, T)`; needed where types are told apart.
        """
        real = items != PADDING
        keys = tf.cast(real, tf.int32) if self.codes is None else tf.gather(self.codes, items)
        keys = tf.where(real, keys, PADDING)
        order = tf.argsort(keys, axis=1, stable=True)

        def ordered(values: Tensor) -> Tensor:
            return tf.gather(values, order, batch_dims=1)

        moments = tf.bitwise.left_shift(tf.cast(ordered(keys), tf.int64), tf.constant(33, tf.int64))
        earliest = moments
        if self.window is not None:
            time = tf.cast(ordered(seconds), tf.int64)
            earliest = moments + tf.maximum(time - self.window, 0)
            moments += time
        first = tf.searchsorted(moments, earliest, side="left")
        counted = tf.ones_like(items)
        if self.types is not None:
            assert event_types is not None, "Types are asked for where the feature is configured."
            counted = tf.cast(tf.reduce_any(event_types[..., None] == tf.constant(self.types), axis=-1), tf.int32)
        before = tf.cumsum(ordered(counted), axis=1, exclusive=True)
        counts = before - tf.gather(before, first, batch_dims=1)
        codes = self.bins(tf.cast(tf.gather(counts, tf.argsort(order, axis=1), batch_dims=1), tf.float64))
        return codes if self.codes is None else tf.where(keys == UNKNOWN, UNKNOWN, codes)


class StandardCoder(tf.Module):
    """Numbers `(N,)` to standardised values `(N, 1)` in float32; NaN stays NaN.

    Args:
        standard: of the feature.
    """

    def __init__(self, standard: Standard) -> None:
        super().__init__()
        self.standard = standard

    def __call__(self, values: Tensor) -> Tensor:
        """Standardised values `(N, 1)`."""
        scaled = (tf.cast(values, tf.float64) - self.standard.mean) / self.standard.deviation
        cut = tf.clip_by_value(scaled, -MOST_DEVIATIONS, MOST_DEVIATIONS)
        return tf.cast(tf.where(tf.math.is_nan(scaled), scaled, cut), tf.float32)[:, None]


def _packed(values: Tensor, present: Tensor) -> Tensor:
    """Values with those that are present in front, in their order."""
    order = tf.argsort(tf.cast(~present, tf.int32), axis=-1, stable=True)
    return tf.gather(values, order, batch_dims=values.shape.rank - 1)
