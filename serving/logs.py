"""The server's log on stderr: lines for people, or one JSON object a line for machines."""

import json
import logging
import sys
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """One JSON object a record; what a request was stands in `request`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if (request := getattr(record, "request", None)) is not None:
            document["request"] = request
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


def configure(form: str) -> None:
    """Sends the log of this package to stderr, as `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logger = logging.getLogger("serving")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
