"""Serves models: `python -m serving MODELS --rest-port 8501 --grpc-port 8500`."""

import argparse
import logging
import os
import sys
from pathlib import Path

from tfrec.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and serves until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serves models over REST and gRPC.")
    parser.add_argument("models", type=Path, help="a directory MODELS of MODELS/NAME/VERSION, or a models.config file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--rest-port", type=int, default=8501, help="REST port, 0 for a free one (default 8501)")
    parser.add_argument("--grpc-port", type=int, default=8500, help="gRPC port, 0 for a free one (default 8500)")
    parser.add_argument(
        "--poll-seconds", type=float, default=1.0, help="how often new versions are looked for, 0 = never (default 1)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from serving.app import serve

    try:
        serve(
            options.models,
            host=options.host,
            rest_port=options.rest_port,
            grpc_port=options.grpc_port,
            poll_seconds=options.poll_seconds,
        )
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
