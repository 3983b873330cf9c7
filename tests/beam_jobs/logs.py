"""Small made-up logs of all four kinds, and plain-Python readings of them."""

import json

import numpy as np
import polars as pl

ITEM_FEATURES = [
    {"name": "brand", "kind": "categorical"},
    {"name": "tags", "kind": "categorical", "multivalued": True, "max_values": 3},
    {"name": "price", "kind": "numerical", "bins": 4, "standardize": True},
    {
        "name": "image",
        "kind": "multimodal",
        "dim": 4,
        "groups": 2,
        "dims_per_group": 2,
        "quantiles": 2,
        "keep_vectors": True,
    },
    {"name": "text", "kind": "text", "column": "title", "dim": 4, "groups": 2, "dims_per_group": 1, "quantiles": 3},
    {
        "name": "shape",
        "kind": "multimodal",
        "column": "image",
        "dim": 4,
        "quantizer": "product",
        "groups": 2,
        "codes": 4,
    },
    {"name": "topic", "kind": "text", "column": "title", "dim": 4, "quantizer": "residual", "codes": 3, "levels": 2},
    {"name": "cost", "kind": "numerical", "column": "price", "bins": 4, "spacing": "log"},
    {"name": "tier", "kind": "numerical", "column": "price", "boundaries": [5, 10.5]},
    {"name": "maker", "kind": "categorical", "column": "brand", "hash_buckets": 3},
    {"name": "grade", "kind": "categorical", "column": "brand", "vocabulary": ["brand2", "unseen", "brand0"]},
    {"name": "offer", "kind": "categorical", "cross": ["brand", "price"], "hash_buckets": 1000},
    {"name": "blend", "kind": "categorical", "multivalued": True, "max_values": 3, "weight_separator": ":"},
]


TOPICS = ("red:0.3|blue", "", "blue:2|red:8|green:1", "green:0.7")
TASTES = ("tea:3|wine:1", None, "wine")


def make_events(seed=0, num_events=300, num_users=25):
    """Rows of events by rising time with many ties; item 'i9x' stands in no items file."""
    rng = np.random.default_rng(seed)
    items = [f"i{n}" for n in (20 * rng.random(num_events) ** 2).astype(int)]
    return [
        {
            "user_id": f"u{int(num_users * rng.random() ** 2)}",
            "item_id": "i9x" if rng.random() < 0.03 else item,
            "time": 1_600_000_000 + int(time),
            "event_type": str(rng.choice(["view", "view", "cart", "buy"])),
            "device": str(rng.choice(["phone", "desk", ""])),
            "price": round(float(rng.random() * 10), 2),
            "topics": TOPICS[int(time) % len(TOPICS)],
            "stars": int(rng.integers(1, 6)),
        }
        for item, time in zip(items, np.sort(rng.integers(0, 40_000, num_events)), strict=True)
    ]


def make_items(num_items=22):
    """Rows of items; the last two are in no event."""
    rng = np.random.default_rng(7)
    return [
        {
            "item_id": f"i{n}",
            "brand": None if n == 3 else f"brand{n % 4}",
            "tags": [f"tag{n % 5}", f"tag{n % 3}", "all", "cut"] if n % 6 else [],
            "blend": [f"tag{n % 5}:{0.3 * n + 0.1:.2f}", f"tag{n % 3}", "all:1e-3"] if n % 6 else None,
            "price": None if n == 4 else float(n),
            "image": None if n == 5 else rng.normal(size=4).round(3).tolist(),
            "title": "" if n == 6 else f"red thing number{n % 4} word{n % 3}",
        }
        for n in range(num_items)
    ]


def make_users(num_users=27):
    """Rows of users; the last two have no events, the first has events but no profile."""
    return [
        {"user_id": f"u{n}", "country": f"c{n % 3}", "age": 20.0 + n, "tastes": TASTES[n % len(TASTES)]}
        for n in range(1, num_users)
    ]


def make_impressions(seed=1, num_impressions=120, num_users=25):
    """Rows of impressions, some of a user without events."""
    rng = np.random.default_rng(seed)
    return [
        {
            "user_id": f"u{int((num_users + 2) * rng.random())}",
            "item_id": f"i{int(rng.integers(0, 24))}",
            "time": 1_600_000_000 + int(time),
            "position": int(rng.integers(0, 5)),
            "request": f"r{int(rng.integers(0, 40))}",
            "weight": int(time) % 4 / 2,
            "stars": int(rng.integers(1, 6)),
        }
        for time in np.sort(rng.integers(0, 45_000, num_impressions))
    ]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_logs(folder, events=None):
    """Writes all four logs, each in another format."""
    folder.mkdir(exist_ok=True)
    pl.DataFrame(make_events() if events is None else events).write_csv(folder / "events.csv")
    write_jsonl(folder / "items.jsonl", make_items())
    pl.DataFrame(make_users()).write_parquet(folder / "users.parquet")
    pl.DataFrame(make_impressions()).write_csv(folder / "impressions.csv")


def config_of(folder, out, **data):
    """A configuration that uses everything the logs have."""
    return {
        "data": {
            "out": str(out),
            "events": {"files": [str(folder / "events.csv")]},
            "items": {"files": [str(folder / "items.jsonl")]},
            "users": {"files": [str(folder / "users.parquet")]},
            "impressions": {"files": [str(folder / "impressions.csv")]},
            "labels": [{"name": "liked", "column": "stars", "operator": ">=", "value": 4}],
            "target_events": ["buy", "cart"],
            **data,
        },
        "features": {
            "items": ITEM_FEATURES,
            "users": [
                {"name": "country", "kind": "categorical"},
                {"name": "age", "kind": "numerical", "bins": 3},
                {
                    "name": "tastes",
                    "kind": "categorical",
                    "multivalued": True,
                    "separator": "|",
                    "weight_separator": ":",
                    "max_values": 3,
                },
                {"name": "group", "kind": "categorical", "cross": ["age", "country"], "hash_buckets": 50},
            ],
            "events": [
                {"name": "device", "kind": "categorical"},
                {"name": "paid", "column": "price", "kind": "numerical", "bins": 5},
                {"name": "mood", "kind": "categorical", "cross": ["device", "paid"], "hash_buckets": 50},
                {
                    "name": "topics",
                    "kind": "categorical",
                    "multivalued": True,
                    "separator": "|",
                    "weight_separator": ":",
                    "max_values": 2,
                },
                {"name": "visits", "kind": "counter", "of": "user", "window_seconds": 9000},
                {"name": "again", "kind": "counter", "of": "item_id", "boundaries": [1, 2, 3]},
                {"name": "bought", "kind": "counter", "of": "brand", "event_types": ["buy", "cart"]},
            ],
            "display": ["title"],
        },
    }


def histories_of(events, max_events=10_000):
    """User -> their rows in the order of time, ties as in the log, the latest `max_events`."""
    histories = {}
    for row in sorted(events, key=lambda row: row["time"]):
        histories.setdefault(row["user_id"], []).append(row)
    return {user: rows[-max_events:] for user, rows in histories.items()}


def split_of(rows, targets=("buy", "cart")):
    """Leave-one-out over the rows of one user."""
    places = [place for place, row in enumerate(rows) if row["event_type"] in targets]
    if len(places) < 3:
        return [0] * len(rows)
    return [(place >= places[-2]) + (place >= places[-1]) for place in range(len(rows))]
