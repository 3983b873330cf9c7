"""What reads requests and models is not older than the releases that closed its known holes."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.test_repository import requirements_of_setup

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "keras": "3.15.1",  # code run by loading a model: CVE-2025-1550, 8747, 9905, 9906, CVE-2026-1462
    "tensorflow": "2.20",
    "protobuf": "6.31.1",  # endless recursion: CVE-2025-4565
    "grpcio": "1.66",  # poisoned header tables: CVE-2024-7246
    "h11": "0.16",  # chunked bodies read in two ways: CVE-2025-43859
    "starlette": "0.49.1",  # ranges that take quadratic time: CVE-2025-62727
    "pyarrow": "14.0.1",  # code run by reading a file: CVE-2023-47248
}


@pytest.mark.parametrize("name", FLOORS)
def test_locked_version_is_at_least_the_floor(name: str) -> None:
    text = (ROOT / "requirements.txt").read_text("utf-8")
    locked = re.search(rf"^{name}==([^ \\]+)", text, re.MULTILINE)
    assert locked is not None
    assert Version(locked[1]) >= Version(FLOORS[name])


@pytest.mark.parametrize("name", sorted(FLOORS.keys() - {"protobuf"}))  # which TensorFlow holds in its range
def test_package_asks_for_at_least_the_floor(name: str) -> None:
    declared = [Requirement(text) for text in requirements_of_setup() if re.match(rf"{name}\b(?!-)", text)]
    lowest = [Version(part.version) for each in declared for part in each.specifier if part.operator == ">="]
    assert lowest
    assert all(version >= Version(FLOORS[name]) for version in lowest)
