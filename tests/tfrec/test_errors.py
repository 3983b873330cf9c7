import errno
import os
from pathlib import Path

import pytest

from tfrec.errors import UsageError, UserError, mendable, writing


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EEXIST, "File exists"),
        (errno.ENOTDIR, "Not a directory"),
        (errno.EISDIR, "Is a directory"),
        (errno.ENOENT, "No such file or directory"),
        (errno.ENOSPC, "No space left on device; free some and run the same command again"),
        (errno.EFBIG, "File too large"),
        (errno.ENAMETOOLONG, "File name too long"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_what_the_machine_refuses_is_one_line_with_the_file(number, reason):
    said = os.strerror(number)
    error = OSError(number, said, "a/b.csv")
    assert str(mendable(error)) == f"a/b.csv: {reason}."
    assert str(mendable(RuntimeError(f"Traceback\nOSError: {error} [while running 'Write']"))) == f"a/b.csv: {reason}."
    assert str(mendable(OSError(number, said))) == f"{reason}."
    assert str(mendable(OSError(number, said), Path("out/shop"))) == f"out/shop: {reason}."
    assert str(mendable(error, Path("out/shop"))) == f"a/b.csv: {reason}."
    assert str(mendable(ValueError(f"failed: {said.lower()} (os error {number})"))) == f"{reason}."


def test_a_library_may_tell_of_a_full_disk_in_its_own_words():
    told = mendable(RuntimeError("x/y; No space left on device"), Path("out"))
    assert str(told) == "out: No space left on device; free some and run the same command again."


def test_a_block_that_writes_names_its_place():
    with pytest.raises(UserError, match="runs/a: No space left on device; free some"), writing(Path("runs/a")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"^as it is$"), writing(Path("runs/a")):
        raise UserError("as it is")
    with pytest.raises(KeyError), writing(Path("runs/a")):
        raise KeyError("item")


def test_a_users_mistake_stays_what_it_is_and_other_errors_are_nobodys():
    usage = UsageError("no")
    assert mendable(usage) is usage
    assert mendable(OSError(errno.EIO, "broken disk", "x")) is None
    assert mendable(OSError("no number")) is None
    assert mendable(KeyError("item")) is None
