"""The rows of docs/serving_conformance.md, and which of them a run of the tests found green."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "serving_conformance.md"
_ROW = re.compile(r"^\| ([A-L]\d+) \| (must|should|may) \| (.+) \| (held|differs|open)(?:: (.+))? \|$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One promise: how much it matters, and whether it is held, differs on purpose, or is open."""

    kind: str
    state: str
    reason: str | None


def rows() -> dict[str, Row]:
    """The rows of the page by id."""
    found = _ROW.findall(PAGE.read_text("utf-8"))
    return {name: Row(kind, state, reason or None) for name, kind, _, state, reason in found}


def summary(passed: Iterable[Any], failed: Iterable[Any]) -> str | None:
    """How many rows of each kind are green: all their tests that ran have passed. None where no such test ran."""
    bad = {name for report in failed for name in _ids(report)}
    good = {name for report in passed for name in _ids(report)} - bad
    if not good | bad:
        return None
    known = rows()
    total = Counter(row.kind for row in known.values())
    green = Counter(known[name].kind for name in good if name in known)
    counts = ", ".join(f"{green[kind]} of {total[kind]} {kind}" for kind in ("must", "should", "may"))
    text = f"conformance rows green: {counts}"
    return f"{text}; red: {', '.join(sorted(bad))}" if bad else text


def _ids(report: Any) -> list[str]:
    return next((value for key, value in getattr(report, "user_properties", ()) if key == "conformance"), [])
