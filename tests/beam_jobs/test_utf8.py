import io
import random

import pyarrow as pa
import pytest

from beam_jobs.utf8 import MarkedText, without_marks


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_valid_text_is_read_as_it_is_whatever_the_size_of_reads(size):
    content = ("plain\n" * 20 + "Käse, 茶, 🙂\n" * 20).encode()
    read = MarkedText(io.BytesIO(content))
    assert b"".join(iter(lambda: read.read(size), b"")) == content
    assert not read.has_marks


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_what_is_no_utf8_is_replaced_where_python_replaces_it(size):
    content = random.Random(1).randbytes(500) + "ä".encode()[:1]
    read = MarkedText(io.BytesIO(content))
    marked = b"".join(iter(lambda: read.read(size), b""))
    assert without_marks(marked.decode()) == content.decode(errors="replace")
    assert read.has_marks


def test_marks_become_bytes_again_that_are_no_utf8():
    read = MarkedText(io.BytesIO(b"a\xffb"))
    batch = pa.record_batch({"name": pa.array([read.read(100), b"c"], pa.binary())})
    assert read.unmark(batch)["name"].to_pylist() == [b"a\xffb", b"c"]
