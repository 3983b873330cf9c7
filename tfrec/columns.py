"""A dataset in memory: the catalogue and the histories as columns, and the column cache that NumPy alone reads.

The cache lies in `DATASET/cache/`. The dataset's manifest lists what preprocessing wrote and nothing else, so it stays
valid; the cache has a manifest of its own, which names the dataset (by fingerprint) that it was made of. Whoever
writes the dataset again replaces the whole directory, so that no stale cache survives, and one that does is not used.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.manifest import MANIFEST, fingerprint, published, read_manifest, verify, write_manifest
from tfrec.transforms import FIRST_VALUE

CACHE = "cache"
_OFFSETS = "offsets"
SPLITS = {"train": 0, "validation": 1, "test": 2}
_FORMAT_VERSION = 3


@dataclass(frozen=True)
class Catalogue:
    """Every item of a dataset; row i of each array is the item whose code is i (0 padding, 1 unknown)."""

    codes: NDArray[np.int32]
    """Codes of the item features, `(V, columns)`, by `Schema.item_columns`."""
    train_count: NDArray[np.int64]
    """Events of the training split, `(V,)`."""
    retired: NDArray[np.bool_]
    """Items that no log names any more, `(V,)`: they keep their codes, and are not recommended."""
    vectors: dict[str, NDArray[np.float16]]
    """Vectors `(V, d)` of the features that keep them; zeros where an item has none."""
    item_ids: list[str]
    """Raw ids; those of padding and unknown are empty, and those that were forgotten."""
    display: dict[str, list[str]]
    """Raw text fields for people to read."""

    @property
    def candidates(self) -> NDArray[np.int64]:
        """The items that can be recommended: all real ones that are not retired."""
        return np.flatnonzero(~self.retired[FIRST_VALUE:]) + FIRST_VALUE


@dataclass(frozen=True)
class Impressions:
    """What was shown to every user, user after user, each user's by (time, order)."""

    offsets: NDArray[np.int64]
    """User u has the impressions `offsets[u]` to `offsets[u + 1]`, `(U + 1,)`."""
    columns: dict[str, NDArray[Any]]
    """`item`, `split`, `history` (events of the user before it), `label_<name>`, and of `time`, `position` (-1 =
    unknown), `request` (numbered from 1 for each user, 0 = unknown) and `weight` (float32) those that there are,
    `(I,)`."""


@dataclass(frozen=True)
class Histories:
    """Every user's events, user after user, each user's by (time, order), and impressions where there are any."""

    offsets: NDArray[np.int64]
    """User u has the events `offsets[u]` to `offsets[u + 1]`, `(U + 1,)`."""
    user_ids: list[str]
    """Raw ids."""
    columns: dict[str, NDArray[Any]]
    """`item`, `split`, and of `time`, `event_type`, `session`, `label_<name>` those that the schema has, `(E,)`;
    `event_<name>` `(E, num_codes)`, all int32, and beside values with weights `event_<name>_weights`, float32."""
    user: dict[str, NDArray[Any]]
    """Codes of the user features by name, `(U, num_codes)` int32; beside values with weights `<name>_weights`,
    float32."""
    impressions: Impressions | None = None
    """What was shown to the users; None where the dataset does not say."""

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @cached_property
    def training_stops(self) -> NDArray[np.int64]:
        """Where each user's training events end, `(U,)`: at the first event of another split."""
        held_out = np.flatnonzero(self.columns["split"] != SPLITS["train"])
        ends = np.append(held_out, self.offsets[-1])
        stops: NDArray[np.int64] = np.minimum(ends[np.searchsorted(held_out, self.offsets[:-1])], self.offsets[1:])
        return stops


def write_cache(directory: Path, catalogue: Catalogue, histories: Histories) -> Path:
    """Writes the column cache of a dataset directory and returns where it lies."""
    with published(directory / CACHE) as target:
        write_texts(target, "item_ids", catalogue.item_ids)
        write_texts(target, "user_ids", histories.user_ids)
        for name, texts in catalogue.display.items():
            write_texts(target, f"display_{name}", texts)
        for name, array in _arrays(catalogue, histories).items():
            np.save(target / f"{name}.npy", array, allow_pickle=False)
        write_manifest(target, {"format_version": _FORMAT_VERSION, "dataset": fingerprint(directory)})
    return directory / CACHE


def has_cache(directory: Path) -> bool:
    """Whether a dataset directory holds a column cache that was made of just this dataset."""
    cache = directory / CACHE
    if not (cache / MANIFEST).is_file():
        return False
    manifest = read_manifest(cache)
    return manifest.get("format_version") == _FORMAT_VERSION and manifest.get("dataset") == fingerprint(directory)


def read_cache(directory: Path, *, whole: bool = False) -> tuple[Catalogue, Histories]:
    """Reads the column cache of a dataset directory, its large arrays memory-mapped.

    Args:
        directory: the dataset.
        whole: compare hashes, not sizes alone.
    """
    cache = directory / CACHE
    names = {name.removesuffix(".npy") for name in verify(cache, whole=whole)["files"]}

    def load(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): _load(cache, name) for name in sorted(names) if name.startswith(prefix)}

    displays = {name.removesuffix(".offsets") for name in names if name.startswith("display_")}
    catalogue = Catalogue(
        codes=_load(cache, "item_codes"),
        train_count=_load(cache, "train_count"),
        retired=_load(cache, "retired"),
        vectors=load("vector_"),
        item_ids=_read_text(cache, "item_ids"),
        display={name.removeprefix("display_"): _read_text(cache, name) for name in sorted(displays)},
    )
    impressions = load("impression_")
    histories = Histories(
        offsets=_load(cache, "offsets"),
        user_ids=_read_text(cache, "user_ids"),
        columns=load("column_"),
        user=load("user_feature_"),
        impressions=Impressions(impressions.pop(_OFFSETS), impressions) if impressions else None,
    )
    return catalogue, histories


def _arrays(catalogue: Catalogue, histories: Histories) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "item_codes": catalogue.codes,
        "train_count": catalogue.train_count,
        "retired": catalogue.retired,
        "offsets": histories.offsets,
    }
    arrays |= {f"vector_{name}": array for name, array in catalogue.vectors.items()}
    arrays |= {f"column_{name}": array for name, array in histories.columns.items()}
    arrays |= {f"user_feature_{name}": array for name, array in histories.user.items()}
    if histories.impressions is not None:
        shown: dict[str, NDArray[Any]] = {_OFFSETS: histories.impressions.offsets, **histories.impressions.columns}
        arrays |= {f"impression_{name}": array for name, array in shown.items()}
    return arrays


def _load(cache: Path, name: str) -> Any:
    mapped = np.load(cache / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return np.asarray(mapped)  # a plain view of the mapping: what is gathered from it is a plain array


def write_texts(target: Path, name: str, texts: Sequence[str]) -> None:
    """Writes texts as two arrays: their bytes, one behind another, and where each ends."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    np.save(target / f"{name}.npy", np.frombuffer(b"".join(encoded), np.uint8), allow_pickle=False)
    np.save(target / f"{name}.offsets.npy", ends, allow_pickle=False)


def _read_text(cache: Path, name: str) -> list[str]:
    data = _load(cache, name).tobytes()
    ends = _load(cache, f"{name}.offsets").tolist()
    return [data[start:stop].decode() for start, stop in itertools.pairwise(ends)]
