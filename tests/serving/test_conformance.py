"""The page of conformance and the tests say the same."""

import ast
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conformance

# Numbers of rows a section, as in the checklist that the page restates.
SECTIONS = {"A": 28, "B": 18, "C": 13, "D": 26, "E": 27, "F": 15, "G": 6, "H": 20, "I": 14, "J": 19, "K": 12, "L": 8}


def marked() -> set[str]:
    """Every row that some test carries."""
    found = set()
    for path in Path(__file__).resolve().parents[1].rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr="conformance"), args=arguments):
                    found |= {ast.literal_eval(argument) for argument in arguments}
    return found


def test_page_has_every_row_once() -> None:
    expected = {f"{letter}{number}" for letter, count in SECTIONS.items() for number in range(1, count + 1)}
    lines = [line.split("|")[1].strip() for line in conformance.PAGE.read_text("utf-8").splitlines() if "|" in line]
    named = Counter(name for name in lines if name in expected)
    assert set(named.values()) == {1}
    assert set(conformance.rows()) == expected  # each can be read


def test_rows_that_are_held_have_tests_and_open_ones_have_none() -> None:
    tested = marked()
    rows = conformance.rows()
    assert tested <= set(rows)
    assert {name for name, row in rows.items() if row.state == "held"} - tested == set()
    assert {name for name, row in rows.items() if row.state == "open"} & tested == set()


def test_what_is_not_held_has_its_reason() -> None:
    assert [name for name, row in conformance.rows().items() if (row.state != "held") != (row.reason is not None)] == []


def report(*names: str) -> SimpleNamespace:
    return SimpleNamespace(user_properties=[("conformance", list(names))])


def test_summary_counts_rows_whose_tests_all_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("| A1 | must | x | held |\n| A2 | must | y | open: z |\n| B1 | may | x | differs: so |\n")
    monkeypatch.setattr(conformance, "PAGE", page)
    plain = SimpleNamespace(user_properties=[])
    assert conformance.summary([plain], []) is None
    green = conformance.summary([report("A1"), report("B1", "A2")], [])
    assert green == "conformance rows green: 2 of 2 must, 0 of 0 should, 1 of 1 may"
    red = conformance.summary([report("A1"), report("B1")], [report("A1", "A2")])
    assert red == "conformance rows green: 0 of 2 must, 0 of 0 should, 1 of 1 may; red: A1, A2"
