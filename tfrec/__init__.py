"""tfrec: from raw logs to served recommendations."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load_run", "recommend"]


def __getattr__(name: str) -> Any:
    """Resolves the Python API on first use, so that `import tfrec` stays free of TensorFlow and Keras."""
    if name == "load_run":
        from tfrec.runs import load_run

        return load_run
    if name == "recommend":
        from tfrec.evaluation import recommend

        return recommend
    if name == "evaluate":
        from tfrec.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module 'tfrec' has no attribute {name!r}")
