"""The one exception that a command turns into one line and an exit code."""


class UserError(Exception):
    """Something the user can mend: the message names the file, key or row, the rule, and the mend.

    Commands print it as one line without a traceback. `exit_code` is 2 where the command itself
    was used wrongly (a misspelt key, an unknown model), 1 where the work failed.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(UserError):
    """The command, its configuration or its arguments are wrong (exit code 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)
