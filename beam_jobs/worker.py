"""A worker process on this machine: `python -m beam_jobs.worker`, started by the Fn API runner.

Beam's own entry point notes every connection on stderr. This one says what the job has to say; what fails is told by
the process that started it.
"""

import logging
import sys


def main() -> None:
    """Works until the runner has no more work."""
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(message)s")
    logging.getLogger("beam_jobs").setLevel(logging.INFO)
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    from apache_beam.runners.worker import sdk_worker_main  # notes what is not installed as soon as it is imported

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
