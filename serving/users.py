"""Some users of a dataset directory with their raw histories: what the page for people offers to choose from."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tfrec import manifest
from tfrec.errors import UserError
from tfrec.schema import WEIGHTS, Feature, Schema

_MOST_EVENTS = 200

Event = dict[str, Any]


def read_users(directory: Path, count: int = 100) -> list[dict[str, Any]]:
    """The first users of a dataset's files, which hold them in the order of a hash: a sample, and always the same.

    Only values that the dataset keeps as texts are told: ids, times, types, sessions and features with a vocabulary,
    with the weights of their values.

    Args:
        directory: made by `tfrec preprocess`; it is only read.
        count: how many users at most.

    Returns:
        Of each its `user_id`, the values of its features (`inputs`), and its latest 200 events, the oldest first; all
        keyed by the names of the inputs of `recommend`.

    Raises:
        UserError: it is no dataset.
    """
    if not (directory / manifest.MANIFEST).is_file():
        raise UserError(
            f"{directory}: no dataset there ({manifest.MANIFEST} is missing); `tfrec preprocess` makes one."
        )
    files = sorted(name for name in manifest.verify(directory)["files"] if name.startswith("histories/"))
    reader = _Reader(directory, Schema.read(directory))
    return [reader.user(values) for values in islice(_examples([directory / name for name in files]), count)]


def _examples(files: list[Path]) -> Iterator[dict[str, list[Any]]]:
    import tensorflow as tf

    try:
        for record in tf.data.TFRecordDataset([str(path) for path in files]).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            yield {name: list(getattr(value, value.WhichOneof("kind")).value) for name, value in features.items()}
    except tf.errors.DataLossError:
        raise UserError(f"{files[0].parent}: holds a corrupt TFRecord; run `tfrec preprocess` again.") from None


class _Reader:
    """From stored codes back to raw values."""

    def __init__(self, directory: Path, schema: Schema) -> None:
        self._schema = schema
        self._values: dict[str, list[str]] = {
            feature.name: ["", "", *feature.transform.read(directory)]
            for feature in schema.features
            if feature.transform.type == "vocabulary"
        }
        self._event_types = ["", "", *schema.event_types]

    def user(self, values: Mapping[str, list[Any]]) -> dict[str, Any]:
        """One user of `read_users`."""
        length = len(values["item"])
        events = [self._event(values, place) for place in range(max(0, length - _MOST_EVENTS), length)]
        known = [feature for feature in self._schema.side("user") if feature.name in self._values]
        inputs = {f"user_{feature.name}": self._texts(feature, values[f"user_{feature.name}"]) for feature in known}
        for feature in known:
            if feature.weight_separator is not None:
                name = f"user_{feature.name}{WEIGHTS}"
                inputs[name] = values[name]
        return {"user_id": values["user_id"][0].decode(), "inputs": inputs, "events": events}

    def _event(self, values: Mapping[str, list[Any]], place: int) -> Event:
        event: Event = {"history_item_ids": self._values["item_id"][values["item"][place]]}
        if self._schema.has_time:
            event["history_times"] = self._schema.time_origin + values["time"][place]
        if self._schema.event_types:
            event["history_event_types"] = self._event_types[values["event_type"][place]]
        if self._schema.has_sessions:
            event["history_sessions"] = str(values["session"][place])
        for feature in self._schema.side("event"):
            if feature.name in self._values:
                name, width = f"event_{feature.name}", feature.num_codes
                own = slice(place * width, (place + 1) * width)
                event[name] = self._texts(feature, values[name][own])
                if feature.weight_separator is not None:
                    event[name + WEIGHTS] = values[name + WEIGHTS][own]
        return event

    def _texts(self, feature: Feature, codes: list[int]) -> Any:
        texts = [self._values[feature.name][code] for code in codes]
        return texts if feature.multivalued else texts[0]
