"""SipHash-2-4, the hash of `tf.strings.to_hash_bucket_strong`, in NumPy: the same buckets in the job and in a graph."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

KEY = (0, 0)
"""Of every hash of this project: it spreads values, it keeps no secrets."""

_Words: TypeAlias = NDArray[np.uint64]
_INITIAL = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def siphash(values: Sequence[bytes], key: tuple[int, int] = KEY) -> NDArray[np.uint64]:
    """Hashes `(N,)` of byte strings (Aumasson and Bernstein, 2012, doi:10.1007/978-3-642-34931-7_28)."""
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    words = lengths // 8 + 1  # the last one holds what is left and, in its highest byte, the length
    hashes = np.empty(len(values), np.uint64)
    for number in np.unique(words).tolist():
        chosen = np.flatnonzero(words == number)
        padded = (values[i].ljust(8 * number - 1, b"\0") + bytes([len(values[i]) & 0xFF]) for i in chosen.tolist())
        blocks = np.frombuffer(b"".join(padded), "<u8").reshape(len(chosen), number)
        hashes[chosen] = _hash_blocks(blocks.astype(np.uint64), key)
    return hashes


def bucket_of(values: Sequence[bytes], num_buckets: int) -> NDArray[np.int64]:
    """The bucket `(N,)` of each value, below `num_buckets`."""
    return (siphash(values) % np.uint64(num_buckets)).astype(np.int64)


def _hash_blocks(blocks: _Words, key: tuple[int, int]) -> _Words:
    """The hash `(N,)` of values cut into words `(N, W)`."""
    v0, v1, v2, v3 = (np.full(len(blocks), key[i % 2] ^ _INITIAL[i], np.uint64) for i in range(4))
    for word in blocks.T:
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3 ^ word, 2)
        v0 = v0 ^ word
    v0, v1, v2, v3 = _rounds(v0, v1, v2 ^ np.uint64(0xFF), v3, 4)
    return v0 ^ v1 ^ v2 ^ v3


def _rounds(v0: _Words, v1: _Words, v2: _Words, v3: _Words, number: int) -> tuple[_Words, _Words, _Words, _Words]:
    for _ in range(number):
        v0, v2 = v0 + v1, v2 + v3
        v1, v3 = _rotated(v1, 13) ^ v0, _rotated(v3, 16) ^ v2
        v0, v2 = _rotated(v0, 32) + v3, v2 + v1
        v1, v3 = _rotated(v1, 17) ^ v2, _rotated(v3, 21) ^ v0
        v2 = _rotated(v2, 32)
    return v0, v1, v2, v3


def _rotated(words: _Words, bits: int) -> _Words:
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))
