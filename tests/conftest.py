"""Where TensorFlow is not installed, the files with tests marked `jax` are all that is collected."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before anything imports TensorFlow
_HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if _HAS_TENSORFLOW or not collection_path.name.startswith("test_"):
        return None
    return "mark.jax" not in collection_path.read_text("utf-8") or None
