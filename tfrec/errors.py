"""The one exception that a command turns into one line and an exit code, and what else a user can mend."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MENDABLE = frozenset(
    {
        errno.EACCES,
        errno.EADDRINUSE,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EISDIR,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
# What is left of an error of the system once another process or a library has turned it into a text.
_AS_TEXT = re.compile(
    r"\[Errno (?P<python>\d+)\] [^\n:]*(?:: (?P<quote>['\"])(?P<file>[^\n]*?)(?P=quote))?|os error (?P<rust>\d+)"
)


class UserError(Exception):
    """Something the user can mend: the message names the file, key or row, the rule, and the mend.

    Commands print it as one line without a traceback. `exit_code` is 2 where the command itself
    was used wrongly (a misspelt key, an unknown model), 1 where the work failed.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InterruptionError(UserError):
    """The work was asked to stop (Ctrl-C, SIGTERM), and the same command goes on with it."""


class UsageError(UserError):
    """The command, its configuration or its arguments are wrong (exit code 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)


def mendable(error: BaseException, place: Path | None = None) -> UserError | None:
    """What the machine refuses (a full disk, a name that is taken) as one line; None for any other error.

    An error that a worker or a library has turned into a text is recognised by its number.

    Args:
        error: what was raised.
        place: what was being written, told where the error names no file.
    """
    if isinstance(error, UserError):
        return error
    number, filename = None, None
    if isinstance(error, OSError) and error.errno is not None:
        number, filename = error.errno, error.filename
    elif found := _AS_TEXT.search(str(error)):
        number, filename = int(found["python"] or found["rust"]), found["file"]
    elif os.strerror(errno.ENOSPC) in str(error):
        number = errno.ENOSPC
    if number not in _MENDABLE:
        return None
    reason = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT):
        reason += "; free some and run the same command again"
    where = os.fsdecode(filename) if isinstance(filename, str | bytes) else place
    return UserError(f"{reason}." if where is None else f"{where}: {reason}.")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """What the machine refuses inside the block becomes a `UserError` that names at least this place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = mendable(error, place)
        if told is None:
            raise
        raise told from error
