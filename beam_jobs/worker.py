"""Worker processes on this machine: `python -m beam_jobs.worker FD`, started by `beam_jobs.engine`.

One process imports what a worker needs and then forks a worker for each connection to the listening socket that it is
given, so that a worker is there at once in each of a job's pipelines. A connection brings the environment variables
that Beam's worker is told by, is answered by one byte when the worker begins, and ends with it. The process ends when
its standard input does.
"""

import gc
import json
import logging
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress


def serve(listener: socket.socket) -> None:
    """Forks workers until whoever started this process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the job, which then closes the standard input
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers here
    from apache_beam.runners.worker import sdk_worker_main  # noqa: F401

    import beam_jobs.preprocess  # noqa: F401  what workers would import each by itself

    gc.collect()
    gc.freeze()  # pages that workers share are not written by their collectors
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(sys.stdin.fileno(), selectors.EVENT_READ)
    while True:
        ready = [key.fileobj for key, _ in waiting.select()]
        if sys.stdin.fileno() in ready:
            return
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        waiting.close()
        listener.close()
        work(connection)
        return


def work(connection: socket.socket) -> None:
    """Is a worker until the runner has no more work."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    with connection, connection.makefile("r", encoding="utf-8") as request:
        os.environ.update(json.loads(request.readline()))
        connection.sendall(b"\n")
        _keep_quiet()
        from apache_beam.runners.worker import sdk_worker_main

        with suppress(KeyboardInterrupt):  # the job has got it too, and tells
            sdk_worker_main.main(sys.argv)


def _keep_quiet() -> None:
    """Beam notes every connection; a worker says what the job has to say, and what fails is told by the runner."""
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(message)s")
    logging.getLogger("beam_jobs").setLevel(logging.INFO)
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL + 1)


if __name__ == "__main__":
    _keep_quiet()
    serve(socket.socket(fileno=int(sys.argv[1])))
