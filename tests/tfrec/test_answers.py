"""A published model asked in this process; the SavedModel itself is a stand-in here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tfrec.models.made import make_schema
from tfrec.answers import PublishedModel, history_inputs
from tfrec.errors import UsageError, UserError

TYPES = {"history_item_ids": 7, "history_length": 3, "history_times": 9, "user_age": 7, "event_price": 2}
TYPES |= {"user_tags": 7, "event_tags": 7}
SHAPES = {"history_item_ids": (-1, -1), "history_length": (-1,), "history_times": (-1, -1), "user_age": (-1,)}
ORIGIN = 1_704_067_200
SHAPES |= {"event_price": (-1, -1), "user_tags": (-1, 3), "event_tags": (-1, -1, 4)}


class StandIn:
    """Answers with the items b, a and an empty place, whatever it is asked, and keeps the question."""

    def __init__(self) -> None:
        infos = {
            name: SimpleNamespace(
                dtype=TYPES[name],
                tensor_shape=SimpleNamespace(dim=[SimpleNamespace(size=size) for size in SHAPES[name]]),
            )
            for name in TYPES
        }
        candidates = SimpleNamespace(dtype=7, tensor_shape=SimpleNamespace(dim=[SimpleNamespace(size=-1)] * 2))
        ranked = SimpleNamespace(inputs=infos | {"candidate_ids": candidates})
        signatures = {"recommend": SimpleNamespace(inputs=infos), "rank": ranked}
        self.signature_def = SimpleNamespace(signature_def=signatures)
        self.asked: dict[str, Any] = {}

    def run(self, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        self.asked = {"signature": signature, **inputs}
        if signature == "rank":
            return {"score": np.array([[0.25, 0.75, 0.75, 0.5]], np.float32)[:, : inputs["candidate_ids"].shape[1]]}
        return {"item_ids": np.array([[b"b", b"a", b""]], object), "scores": np.array([[0.5, 0.25, -1e38]], np.float32)}


@pytest.fixture
def published(tmp_path: Path) -> PublishedModel:
    for version in ("2", "10"):
        extra = tmp_path / "shop" / version / "assets.extra"
        extra.mkdir(parents=True)
        make_schema().model_copy(update={"time_origin": ORIGIN}).write(extra)
        rows = [{"item_id": "a", "title": "A chair", "brand": "x"}, {"item_id": "b", "title": "A table", "brand": "y"}]
        (extra / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = PublishedModel.newest(tmp_path / "shop")
    model.__dict__["_servable"] = StandIn()
    return model


def test_newest_is_the_highest_number(published: PublishedModel) -> None:
    assert published.version == 10


def test_answer_has_ids_scores_and_titles(published: PublishedModel) -> None:
    assert published.recommend(["a"]) == [("b", 0.5), ("a", 0.25)]
    assert published.recommend(["a"], k=1) == [("b", 0.5)]
    assert published.fields == ("title", "brand")
    assert published.display("b") == ("A table", "y")
    assert published.display("gone") == ("", "")


def test_inputs_that_a_history_does_not_say_are_missing_values(published: PublishedModel) -> None:
    published.recommend(["a", "b"], times=[5, 7])
    asked = published._servable.asked  # type: ignore[attr-defined]
    assert asked["signature"] == "recommend"
    assert asked["history_times"].tolist() == [[5, 7]]
    assert asked["user_age"].tolist() == [b""]
    assert asked["event_price"].shape == (1, 2)
    assert np.isnan(asked["event_price"]).all()
    assert asked["user_tags"].tolist() == [[b""] * 3]
    assert asked["event_tags"].tolist() == [[[b""] * 4] * 2]


def test_history_without_times_is_a_minute_apart_and_ends_at_the_request(published: PublishedModel) -> None:
    published.recommend(["a", "b", "c"], request_time=ORIGIN + 1000)
    asked = published._servable.asked  # type: ignore[attr-defined]
    assert asked["history_times"].tolist() == [[ORIGIN + 880, ORIGIN + 940, ORIGIN + 1000]]
    published.recommend(["a", "b", "c"])
    times = published._servable.asked["history_times"][0]  # type: ignore[attr-defined]
    assert np.diff(times).tolist() == [60, 60]
    assert times[0] > ORIGIN  # times before the log's first day are clipped to it


def test_request_is_at_the_latest_time_whatever_the_order_of_the_history() -> None:
    inputs = history_inputs(["history_times", "request_time"], ["a", "b", "c"], [50, 90, 70])
    assert inputs["history_times"].tolist() == [[50, 90, 70]]
    assert inputs["request_time"].tolist() == [90]


def test_candidates_come_back_in_the_order_of_their_scores(published: PublishedModel) -> None:
    answer = published.rank(["a", "b"], ["x", "y", "z", "x2"], times=[5, 7])
    assert answer == [("y", 0.75), ("z", 0.75), ("x2", 0.5), ("x", 0.25)]
    asked = published._servable.asked  # type: ignore[attr-defined]
    assert asked["signature"] == "rank"
    assert asked["candidate_ids"].tolist() == [[b"x", b"y", b"z", b"x2"]]
    assert asked["history_times"].tolist() == [[5, 7]]
    assert asked["user_tags"].tolist() == [[b""] * 3]


def test_a_model_that_does_not_rank_is_told(published: PublishedModel) -> None:
    del published._servable.signature_def.signature_def["rank"]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="10: has no signature `rank`, only recommend"):
        published.rank(["a"], ["b"])


def test_similar_items_ask_by_id(published: PublishedModel) -> None:
    assert published.similar_items("a", 1) == [("b", 0.5)]
    assert published._servable.asked["item_ids"].tolist() == [b"a"]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="nix: not in the catalogue of version 10"):
        published.similar_items("nix")


def test_items_that_the_catalogue_does_not_have_are_known(published: PublishedModel) -> None:
    assert published.unknown(["a", "q", "b", ""]) == ["q", ""]


def test_lists_of_other_lengths_are_refused(published: PublishedModel) -> None:
    with pytest.raises(UsageError, match="2 items but 1 times"):
        published.recommend(["a", "b"], times=[5])


def test_model_without_versions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no version there"):
        PublishedModel.newest(tmp_path / "none")


def test_filters_are_asked_of_the_signature_that_has_them(published: PublishedModel) -> None:
    infos = published._servable.signature_def.signature_def
    infos["recommend_filtered"] = infos["recommend"]
    published.recommend(["a"], deny=["x", "y"], where={"brand": ["acme"]})
    asked = published._servable.asked  # type: ignore[attr-defined]
    assert asked["signature"] == "recommend_filtered"
    texts = {name: [value.decode() for value in asked[name][0]] for name in asked if name.startswith(("allow", "deny"))}
    assert texts["deny_item_ids"] == ["x", "y"]
    assert texts["allow_brand"] == ["acme"]
    assert texts["allow_item_ids"] == [""]
    published.recommend(["a"], allow=[])
    assert published._servable.asked["signature"] == "recommend"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="brnd: no feature that items can be filtered by; did you mean `brand`"):
        published.recommend(["a"], where={"brnd": ["acme"]})
