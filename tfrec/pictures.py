"""Tables with bars, on the terminal and, drawn the same, as an SVG file that needs nothing beside it."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.bar import Bar
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

_WIDTH = 130
_BAR_WIDTH = 24
_FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)


def bars_table(
    rows: Sequence[tuple[str, Sequence[float]]], columns: Sequence[str], *, title: str = "", decimals: int = 0
) -> Table:
    """One row a name, and for each column a number with its bar; the longest bar of a column is its largest number."""
    table = Table(title=escape(title) or None)
    table.add_column("", overflow="fold", max_width=40)
    for column in columns:
        table.add_column(escape(column), justify="right")
        table.add_column("", width=_BAR_WIDTH)
    largest = [max((numbers[place] for _, numbers in rows), default=0) for place in range(len(columns))]
    for name, numbers in rows:
        cells: list[RenderableType] = [escape(name)]
        for number, most in zip(numbers, largest, strict=True):
            cells += [f"{number:,.{decimals}f}", Bar(size=most or 1, begin=0, end=number, width=_BAR_WIDTH)]
        table.add_row(*cells)
    return table


def write_svg(path: Path, parts: Sequence[RenderableType], *, title: str) -> None:
    """Draws tables and lines of text, one below the other; equal content gives equal bytes."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), highlight=False, force_terminal=True)
    for part in parts:
        console.print(part)
    # Without the fonts that rich would have a browser fetch.
    path.write_text(
        console.export_svg(title=title, code_format=_FONTS.sub("", CONSOLE_SVG_FORMAT), unique_id="tfrec"),
        encoding="utf-8",
    )
