"""The page's answers over HTTP: models, titles, users of a dataset; who may see them, and what goes wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.app import ModelServer
from serving.settings import Page, Settings
from serving.users import read_users
from tests.datasets import TIME_ORIGIN, make
from tests.datasets import make_dataset as write_dataset
from tests.serving.recommenders import ITEMS, save_recommender
from tests.serving.saved_models import save_half_plus
from tfrec.errors import UserError

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_recommender(root / "shop" / "3")
    save_recommender(root / "other" / "1", shift=1, event_types=())
    save_half_plus(root / "half" / "1")  # recommends nothing
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", users=5, side_features=True)


@pytest.fixture(scope="module")
def page(folder: Path, dataset: Path) -> Iterator[httpx.Client]:
    settings = Settings(page=Page(dataset), cors=True)
    with (
        ModelServer(folder, rest_port=0, grpc_port=None, settings=settings) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("path", "kind"), [("/ui", "text/html"), ("/ui/page.js", "text/javascript"), ("/ui/page.css", "text/css")]
)
def test_files_come_with_a_strict_policy(page: httpx.Client, path: str, kind: str) -> None:
    answer = page.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_origins_may_not_read_the_page(page: httpx.Client) -> None:
    assert "access-control-allow-origin" in page.get("/v1/models/shop").headers
    for path in ("/ui", "/ui/models", "/ui/users"):
        assert "access-control-allow-origin" not in page.get(path, headers={"Origin": "http://elsewhere"}).headers


def test_models_that_recommend_are_listed_with_their_inputs(page: httpx.Client) -> None:
    other, shop = page.get("/ui/models").json()
    assert (other["name"], other["version"], other["event_types"]) == ("other", "1", [])
    assert (shop["name"], shop["version"], shop["labels"]) == ("shop", "3", [])
    assert (shop["event_types"], shop["time_origin"]) == (["view", "cart"], 1000)
    assert shop["inputs"]["history_item_ids"] == {"dtype": "DT_STRING", "sizes": [-1, -1]}
    assert shop["inputs"]["history_length"] == {"dtype": "DT_INT32", "sizes": [-1]}


def items(page: httpx.Client, **fields: Any) -> list[dict[str, str]]:
    answer = page.get("/ui/items", params={"model": "shop", "version": "3"} | fields)
    assert answer.status_code == 200
    return answer.json()


def test_search_finds_titles_and_ids_by_all_their_words(page: httpx.Client) -> None:
    assert [item["item_id"] for item in items(page, query="SHOE")] == ["i2", "i0", "i1"]  # one begins with it
    assert items(page, query="red  shoes") == [{"item_id": "i0", "title": "Red shoes"}]
    assert items(page, query="I3") == [{"item_id": "i3", "title": ITEMS["i3"]}]
    assert items(page, query="nothing like it") == []


def test_titles_by_ids(page: httpx.Client) -> None:
    assert items(page, id=["i1", "unknown", "i4"]) == [
        {"item_id": "i1", "title": "Blue shoes"},
        {"item_id": "unknown", "title": ""},
        {"item_id": "i4", "title": "no"},  # no title: another field stands in
    ]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ui/items?model=shop&version=x&query=a", 400),
        ("/ui/items?model=shop&version=4&query=a", 404),
        ("/ui/items?model=..%2F..&version=3&query=a", 404),
        ("/ui/items?" + "a=&" * 2001, 400),
        ("/ui/nothing", 404),
        ("/ui/../setup.py", 404),
        ("/ui/%2e%2e/app.py", 404),
    ],
)
def test_wrong_questions_are_refused(page: httpx.Client, path: str, status: int) -> None:
    assert page.get(path).status_code == status


def test_page_can_only_be_read(page: httpx.Client) -> None:
    assert page.post("/ui/models").status_code == 405
    assert page.head("/ui").content == b""


def test_page_is_not_there_unless_asked_for(folder: Path) -> None:
    with ModelServer(folder, rest_port=0, grpc_port=None) as server:
        for path in ("/ui", "/ui/models", "/ui/page.js"):
            assert httpx.get(f"http://127.0.0.1:{server.rest_port}{path}").status_code == 404


def test_data_needs_the_token_and_the_files_do_not(folder: Path) -> None:
    with ModelServer(folder, rest_port=0, grpc_port=None, settings=Settings(page=Page(), token=TOKEN)) as server:
        url = f"http://127.0.0.1:{server.rest_port}/ui"
        assert httpx.get(url).status_code == 200
        for path in ("models", "users", "items", "nothing"):
            assert httpx.get(f"{url}/{path}").status_code == 401
        shown = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{url}/users", headers=shown).json() == []
        assert len(httpx.get(f"{url}/models", headers=shown).json()) == 2


def test_users_have_their_raw_histories(page: httpx.Client, dataset: Path, tmp_path: Path) -> None:
    made = make(
        users=5, items=40, seed=0, directory=tmp_path,
        options={
            "has_time": True, "has_sessions": True, "has_event_types": True, "target_event_types": None,
            "split": "leave_one_out", "validation": True, "repeats": "first", "min_events": 1, "max_events": 20,
            "side_features": True, "follow": 0.85,
        },
    )  # fmt: skip
    expected = {user["user_id"]: user for user in made.users}
    users = page.get("/ui/users").json()
    assert {user["user_id"] for user in users} == set(expected)
    for user in users:
        stored = expected[user["user_id"]]
        events = user["events"]
        assert [event["history_item_ids"] for event in events] == [made.item_ids[item] for item in stored["item"]]
        assert [event["history_times"] - TIME_ORIGIN for event in events] == stored["time"].tolist()
        assert [event["history_event_types"] for event in events] == [
            ["view", "purchase"][t - 2] for t in stored["event_type"]
        ]
        assert [event["history_sessions"] for event in events] == [str(number) for number in stored["session"]]
        assert len(user["inputs"]["user_tags"]) == 3
    assert [user["user_id"] for user in read_users(dataset, 2)] == [user["user_id"] for user in users[:2]]


def test_users_of_something_else_are_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset there \(manifest.json is missing\)"):
        ModelServer(folder, rest_port=0, grpc_port=None, settings=Settings(page=Page(tmp_path)))
