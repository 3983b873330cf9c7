"""Tables for people: metrics, comparisons, recommendations and checks as rich tables."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tfrec.comparison import Measured, differences, obstacles
from tfrec.metrics import Difference

STATUS_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def show(*tables: Table | str) -> None:
    """Prints tables and lines on stdout, 200 columns wide where it is no terminal."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)
    for table in tables:
        console.print(table)


def metrics_table(results: Mapping[str, Mapping[str, Any]], *, title: str = "", names: Sequence[str] = ()) -> Table:
    """One row a metric, one column a model; a 95 % interval stands in brackets behind the figure.

    Args:
        results: by model, the document of an evaluation: `metrics` and, where known, `confidence_intervals`.
        title: stands above the table.
        names: the metrics to show; by default all of the first model.
    """
    table = Table(title=escape(title) or None)
    table.add_column("metric")
    for model in results:
        table.add_column(escape(model), justify="right")
    first = next(iter(results.values()))
    for name in names or sorted(first["metrics"], key=by_number):
        table.add_row(escape(name), *(_figure(document, name) for document in results.values()))
    return table


def by_number(name: str) -> tuple[str, int]:
    """Sorts metrics by name, then by cut-off: recall@50 before recall@100."""
    stem, _, cut = name.partition("@")
    return stem, int(cut) if cut.isdecimal() else 0


def _figure(document: Mapping[str, Any], name: str) -> str:
    value = document["metrics"].get(name)
    if value is None:
        return "-"
    return figure(value, (document.get("confidence_intervals") or {}).get(name))


def figure(value: float, interval: Sequence[float] | None = None) -> str:
    """A metric with its interval in brackets, where there is one."""
    return f"{value:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def change(found: Difference) -> str:
    """A paired difference with its interval and p-value."""
    return f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}] p {found.p_value:.3f}"


def markdown_table(rows: Sequence[Sequence[str]], fields: Sequence[str]) -> str:
    """Rows of text as a table in Markdown."""
    lines = [fields, ["---"] * len(fields), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def measured_rows(found: Sequence[Measured], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """One row a model: its name, the number of seeds, each metric with its interval."""
    rows = []
    for one in found:
        intervals = one.intervals
        figures = (figure(one.metrics[name], intervals[name]) if name in intervals else "-" for name in metrics)
        rows.append((one.name, str(one.seeds), *figures))
    return rows


def difference_rows(pairs: Sequence[tuple[Measured, Measured]], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """One row a pair: names, number of seeds, `first - second` of each metric, or why there is no difference."""
    rows = []
    for first, second in pairs:
        reasons = obstacles(first, second)
        found = {} if reasons else differences(first, second)
        cells = [change(found[name]) if name in found else "-" for name in metrics]
        mark = f" (not comparable: {'; '.join(reasons)})" if reasons else ""
        rows.append((f"{first.name} - {second.name}{mark}", str(min(first.seeds, second.seeds)), *cells))
    return rows


def rows_table(
    rows: Sequence[tuple[str, ...]], fields: Sequence[str], *, title: str = "", numbered: bool = False
) -> Table:
    """Rows of text under the names `fields`, numbered from 1 where asked; scores stand to the right."""
    table = Table(title=escape(title) or None)
    if numbered:
        table.add_column("#", justify="right")
    for field in fields:
        table.add_column(escape(field), justify="right" if field == "score" else "left", overflow="fold")
    for number, row in enumerate(rows, start=1):
        table.add_row(*([str(number)] if numbered else []), *map(escape, row))
    return table


def checks_table(checks: Sequence[tuple[str, str, str, str]]) -> Table:
    """One row a check: what, status (ok, warn, fail), what was found, and the mend."""
    table = Table()
    for column in ("check", "status", "found", "mend"):
        table.add_column(column, overflow="fold")
    for name, status, found, mend in checks:
        table.add_row(escape(name), f"[{STATUS_STYLES[status]}]{status}[/]", escape(found), escape(mend))
    return table


def document_table(document: Mapping[str, Any], *, title: str = "") -> Table:
    """A nested document as rows of dotted keys and values."""
    table = Table(title=escape(title) or None, show_header=False)
    table.add_column("key")
    table.add_column("value", overflow="fold")
    for key, value in flattened(document):
        table.add_row(escape(key), escape(value))
    return table


def flattened(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The entries of a nested document as dotted keys and values; a long list is cut after its first entries."""
    rows = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            rows += flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 12:
            rows.append((f"{prefix}{key}", f"{', '.join(map(str, value[:12]))}, ... ({len(value)} in all)"))
        else:
            rows.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
