"""Where TensorFlow is not installed, the files with tests marked `jax` are all that is collected."""

import gc
import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import conformance

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before anything imports TensorFlow
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TFRS and encoders of other packages share a process here
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")  # tests compile much and compute little
settings.register_profile("equal", derandomize=True)  # the same examples in every run
settings.load_profile("equal")
_HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if _HAS_TENSORFLOW or collection_path.name == "__init__.py":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return not any("mark.jax" in path.read_text("utf-8") for path in files) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rows of the conformance checklist travel with the reports, to this process or to another."""
    for item in items:
        names = [name for mark in item.iter_markers("conformance") for name in mark.args]
        if names:
            item.user_properties.append(("conformance", names))


def pytest_collection_finish() -> None:
    """What was imported stays: looking through all of it again and again for garbage took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    line = conformance.summary(stats.get("passed", ()), [*stats.get("failed", ()), *stats.get("error", ())])
    if line is not None:
        terminalreporter.write_line(line)
