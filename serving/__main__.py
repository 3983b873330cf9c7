"""Serves models: `python -m serving MODELS --rest-port 8501 --grpc-port 8500`."""

import os
import sys

from tfrec.errors import UserError


def run(arguments: list[str], program: str) -> None:
    """Reads the command line and serves until it is told to stop.

    Raises:
        UserError: the command line or what it names cannot be used.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from serving import app, flags, logs

    command = flags.parse(arguments, program)
    logs.configure(command.log_format)
    app.serve(command.models, **command.serve)


def main() -> int:
    """The same, with mistakes as one line and an exit code."""
    try:
        run(sys.argv[1:], "python -m serving")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
