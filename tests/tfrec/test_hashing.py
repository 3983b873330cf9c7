import numpy as np
import pytest

from tfrec.hashing import bucket_of, siphash


@pytest.mark.parametrize(
    ("length", "digest"),
    [
        (0, "310e0edd47db6f72"),
        (1, "fd67dc93c539f874"),
        (2, "5a4fa9d909806c0d"),
        (3, "2d7efbd796666785"),
        (15, "e545be4961ca29a1"),  # worked through in the paper's appendix
    ],
)
def test_siphash_gives_the_digests_of_its_authors(length, digest):
    key = (0x0706050403020100, 0x0F0E0D0C0B0A0908)
    hashes = siphash([b"other", bytes(range(length)), b"x" * 40], key)
    assert hashes[1].astype("<u8").tobytes().hex() == digest


def test_hashes_depend_on_nothing_but_the_value():
    values = [b"", b"a", "日本".encode(), b"x" * 300, b"1234567", b"12345678", b"\0"]
    together = siphash(values)
    assert len(set(together.tolist())) == len(values)
    assert [siphash([value])[0] for value in values] == together.tolist()
    assert siphash([]).tolist() == []


def test_buckets_are_filled_alike():
    counts = np.bincount(bucket_of([str(number).encode() for number in range(20_000)], 10), minlength=10)
    assert len(counts) == 10
    assert abs(counts - 2000).max() < 5 * 2000**0.5
