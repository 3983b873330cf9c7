import numpy as np
import polars as pl

from beam_jobs.hashing import bottom_k, buckets_of, hash_ids, mix

MASK = 2**64 - 1


def hash_in_python(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * multiplier & MASK
    return value ^ value >> 33


def test_hash_is_fnv_1a_with_murmur_finaliser():
    texts = ["", "a", "foobar", "ü-5", "x" * 70, "user-17"]
    assert hash_ids(pl.Series(texts)).tolist() == [hash_in_python(text) for text in texts]


def test_hash_never_changes():
    # FNV-1a of "a" is published as af63dc4c8601ec8c; the finaliser is applied to it here.
    assert mix(np.array([0xAF63DC4C8601EC8C], np.uint64))[0] == hash_ids(pl.Series(["a"]))[0] == 9413272369427828315


def test_whole_numbers_hash_as_their_texts_and_slices_as_wholes():
    numbers = pl.Series([17, 3, 12345678901, 0])
    np.testing.assert_array_equal(hash_ids(numbers), hash_ids(numbers.cast(pl.String)))
    texts = pl.Series([f"id{i}" * (i % 4) for i in range(100)])
    np.testing.assert_array_equal(hash_ids(texts[40:60]), hash_ids(texts)[40:60])


def test_a_missing_id_hashes_as_the_empty_text_and_no_ids_give_no_hashes():
    assert hash_ids(pl.Series([None, "b"], dtype=pl.String))[0] == hash_in_python("")
    assert hash_ids(pl.Series([], dtype=pl.String)).shape == (0,)


def test_buckets_are_about_equally_full():
    counts = np.bincount(buckets_of(pl.Series(range(20_000)), 8), minlength=8)
    assert counts.min() > 2300
    assert counts.max() < 2700


def test_bottom_k_is_the_k_smallest_in_order():
    hashes = np.random.default_rng(0).permutation(50).astype(np.uint64)
    assert hashes[bottom_k(hashes, 7)].tolist() == list(range(7))
    assert hashes[bottom_k(hashes, 99)].tolist() == list(range(50))
