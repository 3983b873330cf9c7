"""Impressions for the made-up dataset of `tests.datasets`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfrec.schema import MISSING_LABEL

LABELS = ("click", "cart")
_COLUMNS = ("item", "time", "split", "history", "position", "request", *(f"label_{label}" for label in LABELS))


def make_impressions(rng: np.random.Generator, history: Mapping[str, Any], items: int) -> dict[str, np.ndarray]:
    """Impressions of one user: before some events, at a moment of their own, the item of the event among others."""
    shown: dict[str, list[int]] = {f"impression_{name}": [] for name in _COLUMNS}
    for request, event in enumerate(np.flatnonzero(rng.random(len(history["item"])) < 0.7), 1):
        count = int(rng.integers(1, 6))
        candidates = rng.integers(2, items + 2, count)
        candidates[rng.integers(count)] = history["item"][event]
        click = candidates == history["item"][event]
        rows = {
            "item": candidates,
            "time": np.full(count, history["time"][event]),
            "split": np.full(count, history["split"][event]),
            "history": np.full(count, event),
            "position": np.where(rng.random(count) < 0.9, np.arange(count) + 1, -1),
            "request": np.full(count, request if request % 4 else 0),
            "label_click": click,
            "label_cart": np.where(rng.random(count) < 0.8, click & (candidates % 2 == 0), MISSING_LABEL),
        }
        for name, values in rows.items():
            shown[f"impression_{name}"] += values.astype(int).tolist()
    arrays = {name: np.array(values, np.int64) for name, values in shown.items()}
    return {**arrays, "impression_weight": (0.5 + arrays["impression_item"] % 3).astype(np.float32)}
