"""How a raw value becomes codes: small frozen specifications that travel whole in `schema.json`.

The same specification is applied by Beam when it writes a dataset, by the serving graph when it meets a new item, and
by anyone who holds the dataset directory. Codes of every transform: 0 = padding, 1 = unknown or missing, values from 2.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tfrec.hashing import bucket_of

PADDING = 0
UNKNOWN = 1
FIRST_VALUE = 2
MOST_DEVIATIONS = 10.0

Codes: TypeAlias = NDArray[np.int32]
Vectors: TypeAlias = NDArray[np.float32]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Vocabulary(_Spec):
    """Values listed in a file, one a line, in the order of their codes; anything else is unknown.

    A tab, newline or backslash inside a value is written as an escape, so that one line is one value. A code whose
    value was forgotten has none: it reads as the empty string, which is nobody's value.
    """

    type: Literal["vocabulary"] = "vocabulary"
    file: str
    """Path of the file, relative to the dataset directory."""
    size: int
    """Rows that an embedding table needs: the number of values + 2."""

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of the embedding table."""
        return (self.size,)

    def read(self, directory: Path) -> list[str]:
        """The values in the order of their codes (the first has code 2)."""
        return read_values(directory / self.file)

    def encode(self, values: Iterable[str | None], directory: Path) -> Codes:
        """Codes `(N,)` of N values; None and the empty string are unknown."""
        codes = _codes_by_value(directory / self.file)
        return np.fromiter((codes.get(value, UNKNOWN) if value else UNKNOWN for value in values), np.int32)


class Hashed(_Spec):
    """Values by the bucket that their hash falls into: no vocabulary, nothing unknown; values may share a bucket."""

    type: Literal["hashed"] = "hashed"
    hash_buckets: int

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of the embedding table."""
        return (FIRST_VALUE + self.hash_buckets,)

    def encode(self, values: Iterable[str | None], directory: Path | None = None) -> Codes:
        """Codes `(N,)` of N values; None and the empty string are missing. `directory` is not needed."""
        texts = [(value or "").encode() for value in values]
        known = np.fromiter(map(bool, texts), np.bool_, len(texts))
        return np.where(known, bucket_of(texts, self.hash_buckets) + FIRST_VALUE, UNKNOWN).astype(np.int32)


class Cross(_Spec):
    """Two features of the same side as one: each pair of their codes by the bucket that its hash falls into.

    A pair is hashed as the text "first,second"; it is missing where either code is unknown or missing.
    """

    type: Literal["cross"] = "cross"
    cross: tuple[str, str]
    """Names of the features, which have one code each."""
    hash_buckets: int

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of the embedding table."""
        return (FIRST_VALUE + self.hash_buckets,)

    def encode_codes(self, first: Codes, second: Codes) -> Codes:
        """Codes `(N,)` of the codes `(N,)` of both features."""
        pairs, places = np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)
        buckets = bucket_of([b"%d,%d" % (a, b) for a, b in pairs.tolist()], self.hash_buckets)
        known = (pairs >= FIRST_VALUE).all(axis=1)
        return np.where(known, buckets + FIRST_VALUE, UNKNOWN).astype(np.int32)[places.reshape(-1)]


class Bins(_Spec):
    """Numerical values cut at increasing boundaries; a value equal to a boundary belongs to the bin above it."""

    type: Literal["bins"] = "bins"
    boundaries: tuple[float, ...]
    spacing: Literal["quantile", "uniform", "log", "given"] = "quantile"
    """How the boundaries came about."""

    @property
    def size(self) -> int:
        """Rows that an embedding table needs: padding, missing and `len(boundaries) + 1` bins."""
        return FIRST_VALUE + len(self.boundaries) + 1

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of the embedding table."""
        return (self.size,)

    def encode(self, values: Iterable[float | None] | NDArray[np.float64], directory: Path | None = None) -> Codes:
        """Codes `(N,)`; None and NaN are missing. `directory` is not needed: the boundaries are in the schema."""
        if not isinstance(values, np.ndarray):
            values = [np.nan if value is None else value for value in values]
        array = np.asarray(values, np.float64)
        bins = np.searchsorted(np.array(self.boundaries, np.float64), array, side="right") + FIRST_VALUE
        return np.where(np.isnan(array), UNKNOWN, bins).astype(np.int32)


class EventCounter(_Spec):
    """How many events of the same user stand before an event, by bins; the event itself is never counted.

    "Before" is by (time, order), as histories stand: of two events at one moment the first counts for the second.
    """

    type: Literal["event_counter"] = "event_counter"
    of: str
    """`user`: all of them; or a feature of items with one code: those of items with the same code."""
    window_seconds: int | None = None
    """Only those at most so long before the event."""
    event_types: tuple[str, ...] | None = None
    """Only those of these types."""
    boundaries: tuple[float, ...]
    """Of the bins of numbers, as those of `Bins`."""

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of the embedding table."""
        return self.bins.table_sizes

    @property
    def bins(self) -> Bins:
        """What numbers of events are cut into."""
        return Bins(boundaries=self.boundaries, spacing="given")

    def encode(
        self, keys: NDArray[np.int64], seconds: NDArray[Any] | None = None, counted: NDArray[np.bool_] | None = None
    ) -> Codes:
        """Codes `(N,)` of N events, which stand by time among those of equal keys.

        Args:
            keys: equal for events of one user that count for each other; negative where nobody knows, which is unknown.
            seconds: times, for `window_seconds`.
            counted: the events that count for later ones; None = all.
        """
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        begins = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
        first = np.maximum.accumulate(np.where(begins, np.arange(len(ordered)), 0))
        if self.window_seconds is not None:
            assert seconds is not None, "Times are asked for where the feature is configured."
            moments = (np.cumsum(begins) << 33) + seconds[order]
            earliest = (np.cumsum(begins) << 33) + np.maximum(seconds[order].astype(np.int64) - self.window_seconds, 0)
            first = np.searchsorted(moments, earliest)
        before = np.arange(len(ordered) + 1)
        if counted is not None:
            before = np.append(0, np.cumsum(counted[order]))
        counts = np.empty(len(keys), np.int64)
        counts[order] = before[:-1] - before[first]
        return np.where(keys < 0, UNKNOWN, self.bins.encode(counts.astype(np.float64))).astype(np.int32)


class Standard(_Spec):
    """A number as (x - mean) / deviation, cut to -10..10: what a model reads beside the number's bin."""

    mean: float
    deviation: float

    def encode(self, values: NDArray[np.float64]) -> Vectors:
        """Standardised values `(N,)` of numbers `(N,)`; NaN stays NaN, a missing value."""
        return np.clip((values - self.mean) / self.deviation, -MOST_DEVIATIONS, MOST_DEVIATIONS).astype(np.float32)


def scaled_weights(weights: Vectors) -> Vectors:
    """Weights `(N, M)` of a row's values times the power of two that puts the largest into 0.5..1, itself left out.

    Only their ratios count; scaled so they fit the float16 of an item table, and scaling them twice changes nothing.
    """
    _, exponents = np.frexp(weights.max(axis=1, keepdims=True))
    return np.ldexp(weights, -exponents).astype(np.float32)


class Quantizer(_Spec):
    """What quantisers of vectors have in common: fitted float32 arrays in an .npz, `mean (d,)` among them.

    Codes are worked out in float64: in float32 the last bits, and so codes beside an edge, would
    depend on the size of the batch.
    """

    file: str
    input_dim: int

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows that the embedding table of each code needs."""
        raise NotImplementedError

    @property
    def combiner(self) -> Literal["concatenate", "sum"]:
        """How the embeddings of the codes become one."""
        return "concatenate"

    def arrays(self, directory: Path) -> dict[str, NDArray[np.float32]]:
        """The fitted arrays by name."""
        return read_arrays(directory / self.file)

    def encode(self, vectors: Vectors, directory: Path) -> Codes:
        """Codes `(N, codes)` of vectors `(N, input_dim)`; a row that is not finite (no vector) is missing."""
        fitted = self.arrays(directory)
        missing = ~np.isfinite(vectors).all(axis=1, keepdims=True)
        centred = np.where(missing, 0.0, vectors).astype(np.float64) - fitted["mean"]
        return np.where(missing, UNKNOWN, self.cells(centred, fitted) + FIRST_VALUE).astype(np.int32)

    def cells(self, centred: NDArray[np.float64], fitted: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        """The cells `(N, codes)`, from 0, of vectors less their mean."""
        raise NotImplementedError


class GroupQuantiles(Quantizer):
    """HeterRec's multimodal quantiser (arXiv 2503.01469, section 2.3): quantile bins within groups of dimensions.

    A vector is centred and rotated to `groups * dims_per_group` dimensions (PCA, fitted on the catalogue), cut into
    `groups` equal groups, and each dimension of a group into `quantiles` bins: a group has `quantiles **
    dims_per_group` codes. Differs from the paper: the rotation, without which the exponent d_v / Z explodes.

    The arrays are `mean (d,)`, `rotation (d, groups * dims_per_group)`, `edges (groups * dims_per_group, quantiles -
    1)`.
    """

    type: Literal["group_quantiles"] = "group_quantiles"
    groups: int
    dims_per_group: int
    quantiles: int

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of the embedding table of each code."""
        return (FIRST_VALUE + self.quantiles**self.dims_per_group,) * self.groups

    def cells(self, centred: NDArray[np.float64], fitted: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        """The cell of each group: its bins as the digits of a number, the first dimension's the lowest."""
        rotated = centred @ fitted["rotation"].astype(np.float64)
        bins: NDArray[np.int64] = np.empty(rotated.shape, np.int64)  # (N, groups * dims_per_group)
        for dimension, edges in enumerate(fitted["edges"]):
            bins[:, dimension] = np.searchsorted(edges, rotated[:, dimension], side="right")
        bins = bins.reshape(len(centred), self.groups, self.dims_per_group)
        return (bins * self.quantiles ** np.arange(self.dims_per_group)).sum(axis=2)


class ProductCodes(Quantizer):
    """Product quantisation (Jegou et al., 2011, doi:10.1109/TPAMI.2010.57): the nearest of k means in each group.

    Vectors are centred, rotated and cut into groups as by `GroupQuantiles`. The arrays are `mean (d,)`, `rotation (d,
    groups * dims_per_group)`, `centroids (groups, codes, dims_per_group)`; a group of fewer means ends in rows of NaN.
    """

    type: Literal["product_codes"] = "product_codes"
    groups: int
    dims_per_group: int
    codes: int

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of the embedding table of each code."""
        return (FIRST_VALUE + self.codes,) * self.groups

    def cells(self, centred: NDArray[np.float64], fitted: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        """The place of the nearest mean of each group."""
        rotated = centred @ fitted["rotation"].astype(np.float64)
        parts = np.split(rotated, self.groups, axis=1)
        means = map(present_rows, fitted["centroids"])
        return np.stack([nearest(part, rows) for part, rows in zip(parts, means, strict=True)], axis=1)


class ResidualCodes(Quantizer):
    """Semantic ids by residual quantisation (as of TIGER, arXiv 2305.05065): each level codes what the last left over.

    A level's code is the nearest of its k means; the next level codes the difference. Embeddings are summed, as the
    means are. Differs from TIGER: k-means on the vectors themselves instead of a trained RQ-VAE, and no last code that
    tells items with equal codes apart.

    The arrays are `mean (d,)` and `centroids (levels, codes, d)`; a level with fewer means ends in rows of NaN.
    """

    type: Literal["residual_codes"] = "residual_codes"
    levels: int
    codes: int

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of the embedding table of each code."""
        return (FIRST_VALUE + self.codes,) * self.levels

    @property
    def combiner(self) -> Literal["concatenate", "sum"]:
        """Levels are summed."""
        return "sum"

    def cells(self, centred: NDArray[np.float64], fitted: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        """The place of the nearest mean at each level."""
        columns, rest = [], centred
        for means in map(present_rows, fitted["centroids"]):
            columns.append(nearest(rest, means))
            rest = rest - means[columns[-1]]
        return np.stack(columns, axis=1)


class TfidfSvd(_Spec):
    """Text to a unit vector without any download: TF-IDF over words, then a truncated SVD, both fitted in the job.

    Words are runs of two or more letters or digits, lower-cased; term frequency enters as 1 + log(tf). `vocabulary`
    lists the words; `file` is an .npz with `idf (V,)` and `components (V, dim)`, float32.
    """

    type: Literal["tfidf_svd"] = "tfidf_svd"
    vocabulary: str
    file: str
    dim: int

    def encode(self, texts: Iterable[str | None], directory: Path) -> Vectors:
        """Vectors `(N, dim)` of unit length; a text without a known word is a row of NaN (no vector)."""
        words_known = _codes_by_value(directory / self.vocabulary)
        fitted = read_arrays(directory / self.file)
        weights = tfidf_rows(texts, words_known, fitted["idf"])
        vectors = weights @ fitted["components"]  # row by row: the same bits whatever the batch
        norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        return np.where(norms > 0, vectors / np.where(norms > 0, norms, 1), np.nan).astype(np.float32)


class Pretrained(_Spec):
    """An encoder of texts or images that was trained elsewhere; its checkpoint is no part of the dataset."""

    type: Literal["pretrained"] = "pretrained"
    kind: str
    """tf_models, keras_hub, saved_model or keras."""
    sha256: str
    """A hash of the checkpoint's files: which encoder makes vectors that fit."""
    options: dict[str, Any]
    """What else decides on a vector: the options of `encoder` in the configuration."""


VectorTransform: TypeAlias = GroupQuantiles | ProductCodes | ResidualCodes
QUANTIZERS: Mapping[str, type[Quantizer]] = {
    "quantile": GroupQuantiles,
    "product": ProductCodes,
    "residual": ResidualCodes,
}
"""By the names that configurations give them."""
Transform: TypeAlias = Annotated[
    Vocabulary | Hashed | Cross | Bins | EventCounter | VectorTransform, Field(discriminator="type")
]
Encoder: TypeAlias = Annotated[TfidfSvd | Pretrained, Field(discriminator="type")]

_ROWS_AT_ONCE = 1024
_WORD = re.compile(r"[^\W_]{2,}")


def present_rows(centroids: NDArray[np.float32]) -> NDArray[np.float64]:
    """The rows before those of NaN, in float64."""
    return centroids[~np.isnan(centroids[:, 0])].astype(np.float64)


def nearest(rows: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place `(N,)` of the mean that is nearest to each row; of equally near ones the first."""
    squares = (means**2).sum(axis=1)
    places = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        places[part] = np.argmin(squares - 2 * rows[part] @ means.T, axis=1)
    return places


def words(text: str | None) -> list[str]:
    """The lower-cased words of a text: runs of two or more letters or digits."""
    return _WORD.findall(text.lower()) if text else []


def tfidf_rows(texts: Iterable[str | None], codes: Mapping[str, int], idf: NDArray[np.float32]) -> Any:
    """The TF-IDF weights `(N, V)` of N texts, each row of unit length (or empty), as a `scipy.sparse.csr_array`.

    Args:
        texts: what is weighed.
        codes: each known word's code; the first word, row 0 of `idf`, has code 2.
        idf: `(V,)`, the weight of each word.
    """
    from scipy.sparse import csr_array  # not needed by models, and slow to import

    size = len(idf)
    found = [[codes[word] - FIRST_VALUE for word in words(text) if word in codes] for text in texts]
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    columns = np.fromiter(chain.from_iterable(found), np.int64, int(lengths.sum()))
    rows = np.repeat(np.arange(len(found)), lengths)
    cells, counts = np.unique(rows * size + columns, return_counts=True)
    rows, columns = np.divmod(cells, max(size, 1))
    weights = (1 + np.log(counts)) * idf[columns]
    norms = np.sqrt(np.bincount(rows, weights=weights**2, minlength=len(found)))
    weights = (weights / norms[rows]).astype(np.float32)
    starts = np.searchsorted(rows, np.arange(len(found) + 1))
    return csr_array((weights, columns, starts), shape=(len(found), size))


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNESCAPES = {written[1]: raw for raw, written in _ESCAPES.items()}


_NO_VALUE = "\\-"  # begins the line of an empty value; no escaped text does


def write_values(path: Path, values: Iterable[str]) -> None:
    """Writes one value a line, escaping backslash, newline, carriage return and tab; no two lines are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = str.maketrans(_ESCAPES)
    lines = (value.translate(table) if value else f"{_NO_VALUE}{place}" for place, value in enumerate(values))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def read_values(path: Path) -> list[str]:
    """Reads what `write_values` wrote."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]
    return [unescaped(line) if "\\" in line else line for line in lines]


def unescaped(line: str) -> str:
    """The value that a line stands for."""
    return "" if line.startswith(_NO_VALUE) else re.sub(r"\\(.)", lambda match: _UNESCAPES[match[1]], line)


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes named arrays as .npz; equal arrays give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stub takes array keywords for its own options


def read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """Reads what `write_arrays` wrote, once as long as the file stays as it is."""
    return _arrays(path, _stamp(path))


@lru_cache(maxsize=64)
def _arrays(path: Path, stamp: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _codes_by_value(path: Path) -> dict[str, int]:
    return _codes(path, _stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written again under the same name."""
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


@lru_cache(maxsize=64)
def _codes(path: Path, stamp: tuple[int, int]) -> dict[str, int]:
    return {value: code for code, value in enumerate(read_values(path), start=FIRST_VALUE)}
