from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import jensenshannon
from tensorflow_serving.apis import prediction_log_pb2
from typer.testing import CliRunner

from serving.request_log import file_of
from tests.datasets import EVENT_TYPES, TIME_ORIGIN, make_dataset
from tfrec.cli import app
from tfrec.data import Dataset
from tfrec.errors import UserError
from tfrec.skew import compare_requests


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.open(make_dataset(tmp_path_factory.mktemp("skew") / "data", users=80, items=30, side_features=True))


def requests_of(dataset, change=lambda event, user: event, batch=7):
    """The dataset's own histories as a client would send them, some at once, after `change` of each event."""
    schema, histories, directory = dataset.schema, dataset.histories(), dataset.directory
    texts = {name: ["", "", *schema.feature(name).transform.read(directory)] for name in ("device", "segment", "tags")}
    numbers = {hashed(dataset, text): text for text in map(str, range(200))}  # a text of each bucket
    columns, offsets = histories.columns, histories.offsets
    users = []
    for user in range(histories.num_users):
        events = [
            change(
                {
                    "history_item_ids": dataset.catalogue().item_ids[columns["item"][at]],
                    "history_times": int(columns["time"][at]) + TIME_ORIGIN,
                    "history_event_types": EVENT_TYPES[columns["event_type"][at] - 2],
                    "event_device": texts["device"][columns["event_device"][at, 0]],
                    "event_network": numbers[columns["event_network"][at, 0]],
                    "event_topics": [b"xy"[code - 2 : code - 1] for code in columns["event_topics"][at]],
                },
                user,
            )
            for at in range(offsets[user], offsets[user + 1])
        ]
        segment = texts["segment"][histories.user["segment"][user, 0]]
        users.append((events, segment, [texts["tags"][code] for code in histories.user["tags"][user]]))
    for start in range(0, len(users), batch):
        yield as_inputs(users[start : start + batch])


def hashed(dataset, text):
    return dataset.schema.feature("network").transform.encode([text])[0]


def as_inputs(users):
    width = max(len(events) for events, _, _ in users) + 1  # one place of padding, which says nothing
    shape = (len(users), width)
    inputs = {name: np.full(shape, b"", object) for name in ("history_event_types", "event_device", "event_network")}
    inputs |= {"event_topics": np.full((*shape, 2), b"", object)}
    inputs |= {"history_item_ids": np.full(shape, b"padding", object), "history_times": np.zeros(shape, np.int64)}
    for row, (events, _, _) in enumerate(users):
        for place, event in enumerate(events):
            for name, value in event.items():
                inputs[name][row, place] = value.encode() if isinstance(value, str) else value
    inputs["history_length"] = np.array([len(events) for events, _, _ in users], np.int32)
    inputs["user_segment"] = np.array([segment.encode() for _, segment, _ in users], object)
    inputs["user_tags"] = np.array([[tag.encode() for tag in tags] for _, _, tags in users], object)
    return inputs


def by_name(rows):
    return {row.name: row for row in rows}


def test_requests_like_the_dataset_differ_in_nothing(dataset):
    found = compare_requests(dataset, requests_of(dataset))
    assert {row.name for row in found} >= {
        "unknown items", "item popularity", "history length", "event_type", "item brand", "item categories",
        "item price", "event device", "event network", "user segment", "user tags",
    }  # fmt: skip
    assert {row.name: round(row.divergence, 12) for row in found if row.divergence > 1e-12} == {}


def test_unknown_items_and_other_types_are_seen(dataset):
    def change(event, user):
        if user % 4 == 0:
            event["history_item_ids"] = f"new-{user}"
        event["history_event_types"] = "refund" if user % 2 else "view"
        return event

    rows = by_name(compare_requests(dataset, requests_of(dataset, change)))
    histories = dataset.histories()
    lengths = np.diff(histories.offsets)
    share = lengths[::4].sum() / lengths.sum()
    assert rows["unknown items"].unknown == pytest.approx((0.0, share))
    assert rows["unknown items"].divergence == pytest.approx(jensenshannon([0, 1], [share, 1 - share], base=2) ** 2)
    views, refunds = lengths[::2].sum(), lengths[1::2].sum()
    types = Counter(histories.columns["event_type"].tolist())
    expected = jensenshannon([0, types[2], types[3]], [refunds, views, 0], base=2) ** 2
    assert rows["event_type"].divergence == pytest.approx(expected)
    assert rows["event_type"].unknown == pytest.approx((0.0, refunds / lengths.sum()))
    assert rows["history length"].divergence == 0
    assert rows["item brand"].unknown[1] >= share - 1e-9  # an unknown item has no known brand


def test_requests_for_popular_items_alone_are_seen(dataset):
    counts = Counter(dataset.histories().columns["item"].tolist())
    top = dataset.catalogue().item_ids[counts.most_common(1)[0][0]]
    asked = requests_of(dataset, lambda event, user: event | {"history_item_ids": top})
    rows = by_name(compare_requests(dataset, asked))
    # All requests fall into one of the groups of popularity: p = (1, 0, ...), q has there the first group's share.
    order = sorted(counts.values(), reverse=True)
    share, total = 0, sum(order)
    for count in order:
        if share * 10 // total > 0:
            break
        share += count
    expected = jensenshannon([1, 0], [share / total, 1 - share / total], base=2) ** 2
    assert rows["item popularity"].divergence == pytest.approx(expected)
    assert rows["item popularity"].exceeds(0.05)


def test_dataset_of_another_model_and_empty_logs_are_one_line(dataset):
    (inputs, *_) = requests_of(dataset)
    del inputs["event_device"]
    with pytest.raises(UserError, match="the requests have no `event_device`"):
        compare_requests(dataset, [inputs])
    with pytest.raises(UserError, match="no recorded predict request with a history"):
        compare_requests(dataset, [])


def write_log(path, requests, model="shop"):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for inputs in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.model_spec.name = model
            for name, value in inputs.items():
                log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())


def test_command_tells_by_its_exit_code(dataset, tmp_path):
    same, other = file_of(tmp_path / "same", 0), file_of(tmp_path / "other", 0)
    write_log(same, requests_of(dataset))
    write_log(other, requests_of(dataset, lambda event, user: event | {"history_item_ids": "new"}), model="other")
    runner = CliRunner()
    done = runner.invoke(app, ["skew", str(same), "--against", str(dataset.directory)])
    assert (done.exit_code, "differs" in done.stdout) == (0, False)
    differs = runner.invoke(app, ["skew", str(same), str(other), "--against", str(dataset.directory)])
    assert (differs.exit_code, "differs" in differs.stdout) == (1, True)
    assert "50.00%" in differs.stdout  # half of the events are of unknown items
    lenient = runner.invoke(app, ["skew", str(other), "--against", str(dataset.directory), "--threshold", "1"])
    assert lenient.exit_code == 0
    named = runner.invoke(app, ["skew", str(same), str(other), "--against", str(dataset.directory), "--model", "shop"])
    assert named.exit_code == 0
