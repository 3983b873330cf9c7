import itertools

import numpy as np
import pytest

from beam_jobs.examples import Column, encode_examples, write_records

tf = pytest.importorskip("tensorflow")


def make_rows(seed=0, num_rows=40):
    """Ragged integers over all varint sizes (negative ones too), floats, fixed integers and texts, some empty."""
    rng = np.random.default_rng(seed)
    integers = [
        [int(x) >> int(s) for x, s in zip(rng.integers(-(2**62), 2**62, n), rng.integers(0, 62, n), strict=True)]
        for n in rng.integers(0, 60, num_rows)
    ]
    floats = [rng.normal(size=n).astype(np.float32).tolist() for n in rng.integers(0, 5, num_rows)]
    texts = [("ü" * int(n)).encode() for n in rng.integers(0, 200, num_rows)]
    return integers, floats, texts


def ragged(rows, dtype):
    offsets = np.cumsum([0, *map(len, rows)])
    return Column(np.array([value for row in rows for value in row], dtype), offsets)


def expected_examples(integers, floats, texts, codes):
    for row in range(len(texts)):
        example = tf.train.Example()
        feature = example.features.feature
        feature["history"].int64_list.SetInParent()
        feature["history"].int64_list.value.extend(integers[row])
        feature["score"].float_list.SetInParent()
        feature["score"].float_list.value.extend(floats[row])
        feature["name"].bytes_list.value.append(texts[row])
        feature["codes"].int64_list.value.extend(codes[row].tolist())
        yield example.SerializeToString(deterministic=True)


def test_records_are_what_tensorflow_writes(tmp_path):
    integers, floats, texts = make_rows()
    codes = np.arange(3 * len(texts), dtype=np.int32).reshape(-1, 3) - 5
    columns = {
        "name": Column.texts(texts),
        "history": ragged(integers, np.int64),
        "score": ragged(floats, np.float32),
        "codes": Column.fixed(codes),
    }
    records, offsets = encode_examples(columns)
    expected = list(expected_examples(integers, floats, texts, codes))
    assert [records[a:b].tobytes() for a, b in itertools.pairwise(offsets)] == expected
    write_records(tmp_path / "ours.tfrecord", records, offsets)
    with tf.io.TFRecordWriter(str(tmp_path / "theirs.tfrecord")) as writer:
        for record in expected:
            writer.write(record)
    assert (tmp_path / "ours.tfrecord").read_bytes() == (tmp_path / "theirs.tfrecord").read_bytes()


def test_rows_without_any_values_are_still_rows():
    records, offsets = encode_examples({"item": Column(np.zeros(0, np.int64), np.zeros(3, np.int64))})
    example = tf.train.Example()
    example.features.feature["item"].int64_list.SetInParent()
    assert records.tobytes() == example.SerializeToString(deterministic=True) * 2
    assert len(offsets) == 3
