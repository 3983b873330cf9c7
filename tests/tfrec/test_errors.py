import errno
import os

import pytest

from tfrec.errors import UsageError, mendable


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EEXIST, "File exists"),
        (errno.ENOTDIR, "Not a directory"),
        (errno.EISDIR, "Is a directory"),
        (errno.ENOENT, "No such file or directory"),
        (errno.ENOSPC, "No space left on device"),
        (errno.EFBIG, "File too large"),
        (errno.ENAMETOOLONG, "File name too long"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_what_the_machine_refuses_is_one_line_with_the_file(number, reason):
    error = OSError(number, os.strerror(number), "a/b.csv")
    assert str(mendable(error)) == f"a/b.csv: {reason}."
    assert str(mendable(RuntimeError(f"Traceback\nOSError: {error} [while running 'Write']"))) == f"a/b.csv: {reason}."
    assert str(mendable(OSError(number, os.strerror(number)))) == f"{reason}."
    assert str(mendable(ValueError(f"failed: {reason.lower()} (os error {number})"))) == f"{reason}."


def test_a_library_may_tell_of_a_full_disk_in_its_own_words():
    assert str(mendable(RuntimeError("x/y; No space left on device"))) == "No space left on device."


def test_a_users_mistake_stays_what_it_is_and_other_errors_are_nobodys():
    usage = UsageError("no")
    assert mendable(usage) is usage
    assert mendable(OSError(errno.EIO, "broken disk", "x")) is None
    assert mendable(OSError("no number")) is None
    assert mendable(KeyError("item")) is None
