"""Tables on the terminal: figures stand where they belong, and no text is read as markup."""

import pytest
from rich.console import Console
from rich.table import Table

from tfrec.tables import checks_table, document_table, metrics_table, rows_table


def shown(table: Table) -> str:
    console = Console(width=160, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("text", ["[/x]", "[red]x", "[bold]", "a\\[b]", "[1, 2]", "]["])
def test_brackets_are_shown_as_they_are(text: str) -> None:
    tables = (
        rows_table([(text, "y")], ("item", text), title=f"Items like {text}"),
        metrics_table({text: {"metrics": {"m": 0.5}}}, title=text),
        document_table({text: text}, title=text),
        checks_table([(text, "ok", text, text)]),
    )
    assert [shown(table).count(text) for table in tables] == [3, 2, 3, 3]


def test_metrics_have_intervals_where_known_and_a_dash_where_not() -> None:
    table = metrics_table(
        {
            "one": {"metrics": {"a": 0.25, "b": 0.5}, "confidence_intervals": {"a": [0.2, 0.3]}},
            "two": {"metrics": {"a": 1.0}},
        }
    )
    rows = [line.strip("│ \n").split("│") for line in shown(table).splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["a", "0.2500 [0.2000, 0.3000]", "1.0000"],
        ["b", "0.5000", "-"],
    ]


def test_rows_are_numbered_from_one() -> None:
    text = shown(rows_table([("x", "0.5"), ("y", "0.25")], ("item", "score"), numbered=True))
    assert [line.split()[1:4:2] for line in text.splitlines() if line.startswith("│")] == [["1", "x"], ["2", "y"]]


def test_documents_are_flattened_and_long_lists_cut() -> None:
    text = shown(document_table({"a": {"b": 1, "c": [1, 2]}, "d": list(range(20))}))
    assert "a.b" in text
    assert "1, 2" in text
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (20 in all)" in text
