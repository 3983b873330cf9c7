"""A page for people under `/ui`: search titles, build or choose a history, compare what models recommend.

The page itself is three files that hold no data; what it shows comes from the JSON answers here, from the server's own
`:predict`, and from the titles that travel in each version. All but the three files need the server's token.
"""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from serving.models import Models
from serving.status import ServingError, invalid_argument
from serving.versions import Handle

SIGNATURE = "recommend"
FILES = {
    "/ui": ("page.html", b"text/html; charset=utf-8"),
    "/ui/page.js": ("page.js", b"text/javascript; charset=utf-8"),
    "/ui/page.css": ("page.css", b"text/css; charset=utf-8"),
}
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_FOLDER = Path(__file__).with_name("page")
_ITEMS = "assets.extra/items.jsonl"
_SCHEMA = "assets.extra/schema.json"
_MAX_FIELDS = 2000
_MAX_FOUND = 20
_MAX_BYTES = 1 << 28
_VERSIONS_KEPT = 4


def is_page(path: str) -> bool:
    """Whether a path belongs to the page."""
    return path == "/ui" or path.startswith("/ui/")


def file(path: str) -> tuple[bytes, bytes] | None:
    """One of the page's three files with its type, None where the path is another."""
    if path not in FILES:
        return None
    name, kind = FILES[path]
    return (_FOLDER / name).read_bytes(), kind


class Ui:
    """The JSON answers of the page.

    Args:
        models: what is served.
        users: what `serving.users.read_users` gave; empty where no dataset was named.
    """

    def __init__(self, models: Models, users: list[dict[str, Any]]) -> None:
        self._models = models
        self._users = users
        self._titles: dict[tuple[Path, int], _Titles] = {}
        self._lock = threading.Lock()
        self._answers: dict[str, Callable[[dict[str, list[str]]], Any]] = {
            "/ui/models": lambda query: self._listing(),
            "/ui/users": lambda query: self._users,
            "/ui/items": self._items,
        }

    def answers(self, path: str) -> bool:
        """Whether there is an answer at that path."""
        return path in self._answers

    def answer(self, path: str, query: str) -> bytes:
        """The answer at a path, as JSON.

        Raises:
            ServingError: the query is wrong, or names a version that does not answer.
        """
        try:
            fields = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
        except ValueError:
            raise invalid_argument(f"The query must not have more than {_MAX_FIELDS} fields.") from None
        return json.dumps(self._answers[path](fields)).encode()

    def _listing(self) -> list[dict[str, Any]]:
        """Every version that recommends and answers now, with what its requests need."""
        found = []
        for name in self._models.names:
            for version in self._models.available(name):
                with suppress(ServingError), self._models.handle(name, version) as handle:  # it may go at any moment
                    if SIGNATURE in handle.servable.signatures:
                        found.append(self._describe(handle))
        return found

    def _describe(self, handle: Handle) -> dict[str, Any]:
        inputs = handle.servable.signature_def_json["signature_def"][SIGNATURE]["inputs"]
        schema = _read_json(handle.directory / _SCHEMA)
        return {
            "name": handle.model,
            "version": str(handle.version),
            "labels": self._models.labels(handle.model, handle.version),
            "inputs": {
                alias: {"dtype": info["dtype"], "sizes": [int(dim["size"]) for dim in info["tensor_shape"]["dim"]]}
                for alias, info in inputs.items()
            },
            "event_types": schema.get("event_types", []),
            "time_origin": schema.get("time_origin", 0),
        }

    def _items(self, query: dict[str, list[str]]) -> list[dict[str, str]]:
        """Items by their ids, or those whose titles or ids hold every word of a text."""
        name, version = (query.get(field, [""])[0] for field in ("model", "version"))
        if not version.isdecimal() or len(version) > 19:
            raise invalid_argument("`version` must be a number.")
        with self._models.handle(name, int(version)) as handle:
            titles = self._titles_of(handle.directory)
        if "id" in query:
            return [{"item_id": item, "title": titles.by_id.get(item, "")} for item in query["id"]]
        return titles.search(query.get("query", [""])[0])

    def _titles_of(self, directory: Path) -> "_Titles":
        try:
            key = directory, (directory / _ITEMS).stat().st_mtime_ns
        except OSError:
            key = directory, 0
        with self._lock:
            if key not in self._titles:
                while len(self._titles) >= _VERSIONS_KEPT:
                    del self._titles[next(iter(self._titles))]
                self._titles[key] = _Titles.read(directory)
            return self._titles[key]


@dataclass(frozen=True)
class _Titles:
    """What people read of the items of one version."""

    by_id: dict[str, str]
    searched: list[tuple[str, str]]
    """Of each item what a search looks at, in lower case, and its id; in the order of the items' codes."""

    @classmethod
    def read(cls, directory: Path) -> "_Titles":
        """Reads them; there are none where the version has no such file, or has lost it since it was loaded."""
        path, title = directory / _ITEMS, _read_json(directory / _SCHEMA).get("title")
        try:
            if path.stat().st_size > _MAX_BYTES:
                return cls({}, [])
            with path.open(encoding="utf-8") as file:
                rows = [row for row in map(json.loads, file) if isinstance(row, dict)]
        except (OSError, ValueError):
            return cls({}, [])
        by_id = {}
        for row in rows:
            item = str(row.pop("item_id", ""))
            by_id[item] = str(row.get(title) or next((text for text in row.values() if text), ""))
        return cls(by_id, [(f"{text} {item}".casefold(), item) for item, text in by_id.items()])

    def search(self, text: str) -> list[dict[str, str]]:
        """The first items that hold every word, those that begin with the text before the others."""
        words = text.casefold().split()
        found = [(not each.startswith(" ".join(words)), place, item) for place, (each, item) in enumerate(self.searched)
                 if all(word in each for word in words)]  # fmt: skip
        return [{"item_id": item, "title": self.by_id[item]} for _, _, item in sorted(found)[:_MAX_FOUND]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
