"""What the page works out, in a JavaScript engine without a browser, and what its files may not hold."""

import re
from pathlib import Path
from typing import Any

import pytest
from py_mini_racer import MiniRacer

from serving import app

FOLDER = Path(app.__file__).parent / "page"
STRINGS = {"dtype": "DT_STRING", "sizes": [-1, -1]}
TIMES = {"dtype": "DT_INT64", "sizes": [-1, -1]}
LENGTH = {"dtype": "DT_INT32", "sizes": [-1]}
MODEL = {"name": "my shop/1", "version": "7", "labels": [], "inputs": {}, "event_types": ["view"], "time_origin": 1000}


@pytest.fixture(scope="module")
def page() -> Any:
    engine = MiniRacer()
    engine.eval((FOLDER / "page.js").read_text("utf-8"))
    return engine.call


def test_body_has_the_inputs_of_the_signature_alone(page: Any) -> None:
    inputs = {
        "history_item_ids": STRINGS,
        "history_length": LENGTH,
        "history_times": TIMES,
        "request_time": {"dtype": "DT_INT64", "sizes": [-1]},
        "user_segment": {"dtype": "DT_STRING", "sizes": [-1]},
    }
    events = [
        {"history_item_ids": 'a"b', "history_times": 90, "history_event_types": "view"},
        {"history_item_ids": "c", "history_times": 40},
    ]
    assert page("predictBody", inputs, events, {"user_segment": "loyal", "user_age": 3}) == (
        '{"signature_name":"recommend","inputs":{"history_item_ids":[["a\\"b","c"]],"history_length":[2],'
        '"history_times":[[90,40]],"request_time":[90],"user_segment":["loyal"]}}'
    )


def test_what_a_history_does_not_say_is_missing(page: Any) -> None:
    inputs = {
        "history_item_ids": STRINGS,
        "history_event_types": STRINGS,
        "history_sessions": STRINGS,
        "event_tags": {"dtype": "DT_STRING", "sizes": [-1, -1, 2]},
        "event_price": {"dtype": "DT_DOUBLE", "sizes": [-1, -1]},
        "user_age": {"dtype": "DT_FLOAT", "sizes": [-1]},
        "user_tags": {"dtype": "DT_STRING", "sizes": [-1, 3]},
    }
    assert page("predictBody", inputs, [{"history_item_ids": "a"}], {}) == (
        '{"signature_name":"recommend","inputs":{"history_item_ids":[["a"]],"history_event_types":[[""]],'
        '"history_sessions":[["1"]],"event_tags":[[["",""]]],"event_price":[[NaN]],"user_age":[NaN],'
        '"user_tags":[["","",""]]}}'
    )


def test_empty_history_keeps_its_shape(page: Any) -> None:
    body = page("predictBody", {"history_item_ids": STRINGS, "history_length": LENGTH, "request_time": LENGTH}, [], {})
    assert (
        body
        == '{"signature_name":"recommend","inputs":{"history_item_ids":[[]],"history_length":[0],"request_time":[0]}}'
    )


def test_new_event_comes_a_minute_after_the_last(page: Any) -> None:
    first = page("eventAfter", [], "a", MODEL)
    assert dict(first) == {"history_item_ids": "a", "history_times": 1060, "history_event_types": "view"}
    last = {"history_item_ids": "z", "history_times": 5000, "history_event_types": "cart", "history_sessions": "4"}
    second = page("eventAfter", [last], "b", MODEL)
    assert dict(second) == last | {"history_item_ids": "b", "history_times": 5060}
    plain = page("eventAfter", [], "a", MODEL | {"event_types": []})
    assert dict(plain) == {"history_item_ids": "a", "history_times": 1060}


def test_paths_are_encoded(page: Any) -> None:
    assert page("predictPath", MODEL) == "v1/models/my%20shop%2F1/versions/7:predict"
    path = page("itemsPath", MODEL, [["id", "a&b=c"], ["id", "é"]])
    assert path == "ui/items?model=my%20shop%2F1&version=7&id=a%26b%3Dc&id=%C3%A9"


def test_models_are_named_with_their_labels(page: Any) -> None:
    assert page("modelName", MODEL) == "my shop/1 7"
    assert page("modelName", MODEL | {"labels": ["canary", "stable"]}) == "my shop/1 7 (canary, stable)"


def rows(*items: str) -> list[dict[str, Any]]:
    return [{"itemId": item, "score": 0.5} for item in items]


def test_rows_of_an_answer_without_its_fillers(page: Any) -> None:
    answer = {"outputs": {"item_ids": [["a", "b", ""]], "scores": [[0.5, 0.25, -3.4e38]]}}
    found = [dict(row) for row in page("answerRows", answer)]
    assert found == [{"itemId": "a", "score": 0.5}, {"itemId": "b", "score": 0.25}]


def test_rows_are_compared_by_their_places(page: Any) -> None:
    found = [dict(each) for each in page("compareRows", rows("a", "b", "c", "d"), rows("a", "c", "x", "b"))]
    assert found == [
        {"kind": "same", "text": "same"},
        {"kind": "up", "text": "up 2"},
        {"kind": "down", "text": "down 1"},
        {"kind": "new", "text": "not there"},
    ]
    assert page("inCommon", rows("a", "b", "c", "d"), rows("a", "c", "x", "b")) == "3 of 4 in both"


@pytest.mark.parametrize(
    ("latencies", "text"),
    [
        ([], ""),
        ([12.34], "12.3 ms"),
        ([30.0, 10.0, 20.0], "20.0 ms, median of 3: 20.0 ms"),
        ([9.0, 10.0], "10.0 ms, median of 2: 9.5 ms"),
    ],
)
def test_latency_is_the_last_and_the_median(page: Any, latencies: list[float], text: str) -> None:
    assert page("latencyText", latencies) == text


@pytest.mark.parametrize("name", ["page.html", "page.js", "page.css"])
def test_files_fetch_nothing_from_elsewhere_and_write_no_html(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8")
    assert not re.search(r"https?:|src=\"//|url\(|@import|import\(|style=|\bon[a-z]+=", text)
    unsafe = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|localStorage|sessionStorage|cookie"
    )
    assert not re.search(unsafe, text)
