"""What events and users of the made-up dataset have beside items: features, a cross, weights, a counter."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfrec.schema import Feature, Schema
from tfrec.transforms import Cross, EventCounter, Hashed

EVENT_TYPES = ("view", "purchase")
MOOD = Cross(cross=("device", "network"), hash_buckets=30)
_WINDOW = 100_000


def side_features_of(vocabulary: Any, options: Mapping[str, Any]) -> list[Feature]:
    """The features; `vocabulary` writes the values of one and gives its transform."""
    counter = EventCounter(
        of="brand",
        window_seconds=_WINDOW if options["has_time"] else None,
        event_types=EVENT_TYPES[1:] if options["has_event_types"] else None,
        boundaries=(1.0, 2.0),
    )
    return [
        Feature(
            name="segment",
            side="user",
            kind="categorical",
            column="segment",
            transform=vocabulary("segment", ["new", "loyal", "lapsed"]),
        ),
        Feature(
            name="tags",
            side="user",
            kind="categorical",
            column="tags",
            transform=vocabulary("tags", ["a", "b", "c", "d"]),
            multivalued=True,
            separator="|",
            weight_separator=":",
            num_codes=3,
        ),
        Feature(
            name="topics",
            side="event",
            kind="categorical",
            column="topics",
            transform=vocabulary("topics", ["x", "y"]),
            multivalued=True,
            weight_separator=":",
            num_codes=2,
        ),
        Feature(
            name="device",
            side="event",
            kind="categorical",
            column="device",
            transform=vocabulary("device", ["phone", "desktop"]),
        ),
        Feature(
            name="network",
            side="event",
            kind="categorical",
            column="network",
            transform=Hashed(hash_buckets=4),
        ),
        Feature(name="mood", side="event", kind="categorical", column="mood", transform=MOOD),
        Feature(name="again", side="event", kind="counter", column="again", transform=counter),
    ]


def counted(schema: Schema, history: Mapping[str, Any], brands: np.ndarray) -> np.ndarray:
    """Of each event the code of the number of earlier ones that count: 1 unknown, 2 none, 3 one, 4 more."""
    counter, codes = schema.counters()["again"], []
    for place, brand in enumerate(brands):
        rows = [row for row in range(place) if brands[row] == brand]
        if counter.window_seconds is not None:
            rows = [row for row in rows if history["time"][place] - history["time"][row] <= counter.window_seconds]
        if counter.event_types is not None:
            rows = [row for row in rows if history["event_type"][row] == 3]
        codes.append(1 if brand == 1 else 2 + min(len(rows), 2))
    return np.array(codes)
