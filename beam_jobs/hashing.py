"""A hash of ids that never changes: FNV-1a over UTF-8 bytes, mixed by MurmurHash3's finaliser, in NumPy."""

from typing import TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]

_OFFSET_BASIS = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)


def hash_ids(ids: pl.Series) -> Hashes:
    """Hashes `(N,)` of ids; a whole number hashes as its decimal text, a missing id as the empty text."""
    texts = ids.cast(pl.String).fill_null("").to_arrow().cast(pa.large_string())
    _, offsets_buffer, bytes_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(bytes_buffer, np.uint8) if bytes_buffer is not None else np.zeros(0, np.uint8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    hashes = np.full(len(lengths), _OFFSET_BASIS, np.uint64)
    shortest = int(lengths.min(initial=0)) if len(lengths) == 0 else int(lengths.min())
    for place in range(int(lengths.max(initial=0))):
        if place < shortest:
            hashes = (hashes ^ content[starts + place]) * _PRIME
        else:
            active = np.flatnonzero(lengths > place)
            hashes[active] = (hashes[active] ^ content[starts[active] + place]) * _PRIME
    return mix(hashes)


def mix(hashes: Hashes) -> Hashes:
    """Spreads every input bit over all output bits."""
    hashes = hashes ^ (hashes >> np.uint64(33))
    hashes = hashes * np.uint64(0xFF51AFD7ED558CCD)
    hashes = hashes ^ (hashes >> np.uint64(33))
    hashes = hashes * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> np.uint64(33))


def buckets_of(ids: pl.Series, num_buckets: int) -> NDArray[np.uint16]:
    """The bucket `(N,)` of each id, below `num_buckets`."""
    return (hash_ids(ids) % np.uint64(num_buckets)).astype(np.uint16)


def bottom_k(hashes: Hashes, k: int) -> NDArray[np.int64]:
    """Positions of the k smallest hashes, by rising hash: a sample that depends on neither order nor workers."""
    if len(hashes) > k:
        chosen = np.argpartition(hashes, k - 1)[:k]
        return chosen[np.argsort(hashes[chosen], kind="stable")]
    return np.argsort(hashes, kind="stable")
