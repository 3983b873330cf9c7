"""A tiny recommender as a SavedModel with its titles, for tests of what is built around recommendations."""

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

ITEMS = {
    "i0": "Red shoes",
    "i1": "Blue shoes",
    "i2": "Shoelaces, red",
    "i3": "<img src=x onerror=alert(1)> & more",
    "i4": "",
}


def save_recommender(directory: Path, shift: int = 0, event_types: tuple[str, ...] = ("view", "cart")) -> Path:
    """Recommends four of the five items: those behind the place `length of history + shift` of their ring."""
    module = tf.Module()
    module.items = tf.constant(list(ITEMS))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.string, name="history_item_ids"),
            tf.TensorSpec([None], tf.int32, name="history_length"),
            tf.TensorSpec([None, None], tf.int64, name="history_times"),
            tf.TensorSpec([None, None], tf.string, name="history_event_types"),
            tf.TensorSpec([None], tf.string, name="user_segment"),
        ]
    )
    def recommend(
        history_item_ids: Any, history_length: Any, history_times: Any, history_event_types: Any, user_segment: Any
    ) -> dict[str, Any]:
        places = (history_length[:, None] + shift + tf.range(4)[None]) % len(ITEMS)
        used = tf.size(history_item_ids) + tf.size(history_times) + tf.size(history_event_types) + tf.size(user_segment)
        scores = tf.constant([[0.9, 0.5, 0.25, 0.125]]) + 0.0 * tf.cast(used, tf.float32)
        return {"item_ids": tf.gather(module.items, places), "scores": tf.tile(scores, [tf.shape(places)[0], 1])}

    tf.saved_model.save(module, str(directory), signatures={"serving_default": recommend, "recommend": recommend})
    extra = directory / "assets.extra"
    extra.mkdir()
    rows = [json.dumps({"item_id": item, "brand": "no", "title": title}) for item, title in ITEMS.items()]
    (extra / "items.jsonl").write_text("".join(f"{row}\n" for row in rows))
    schema = {"title": "title", "event_types": event_types, "time_origin": 1000}
    (extra / "schema.json").write_text(json.dumps(schema))
    return directory
