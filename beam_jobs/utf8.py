"""Marks bytes that are no UTF-8 on their way to Arrow's CSV reader, which ends at a short row that holds some."""

import codecs
import io
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

_MARK = "\ufdd0"  # a noncharacter, which no text may hold
_NEVER_VALID = b"\xff"
_ERRORS = "tfrec.mark"


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _MARK, error.end


codecs.register_error(_ERRORS, _mark)


class MarkedText(io.RawIOBase):
    """A binary file whose bytes that are no UTF-8 are read as marks; all others are read as they are.

    Args:
        file: what is read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")(_ERRORS)
        self._rest = b""
        self.has_marks = False

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # the stubs' buffers know no length
        """Fills the buffer; 0 bytes are the end."""
        if not self._rest:
            self._rest = self._next(len(buffer))
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _next(self, size: int) -> bytes:
        while raw := self._file.read(size):
            if raw.isascii() and not self._decoder.getstate()[0]:
                return raw
            if text := self._decoder.decode(raw):
                return self._encoded(text)
        return self._encoded(self._decoder.decode(b"", final=True))

    def _encoded(self, text: str) -> bytes:
        self.has_marks |= _MARK in text
        return text.encode()

    def unmark(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Binary columns of what was read, in which every mark is a byte again that no UTF-8 holds."""
        if not self.has_marks:
            return batch
        columns = [pc.replace_substring(column, _MARK.encode(), _NEVER_VALID) for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def without_marks(text: str) -> str:
    """A text for people: marks become the sign for what cannot be shown."""
    return text.replace(_MARK, "\ufffd")
