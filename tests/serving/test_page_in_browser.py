"""The page driven in a headless browser: `make ui-test`.

The browser is that of TFREC_BROWSER, or the first Chromium or Chrome on PATH, or Playwright's own; without one the
file is skipped.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.app import ModelServer
from serving.settings import Page, Settings
from tests.datasets import make_dataset
from tests.serving.recommenders import ITEMS, save_recommender

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.browser

TOKEN = "0123456789abcdef"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("TFREC_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)
    with playwright.sync_playwright() as driver:
        path = found or driver.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip("no browser: set TFREC_BROWSER, install Chromium, or run `playwright install chromium`")
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--no-zygote", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    root = tmp_path_factory.mktemp("models")
    save_recommender(root / "a" / "1")
    save_recommender(root / "b" / "2", shift=1)
    data = make_dataset(tmp_path_factory.mktemp("data") / "set", users=3)
    with ModelServer(root, rest_port=0, grpc_port=None, settings=Settings(page=Page(data), token=TOKEN)) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: ModelServer) -> Iterator[Any]:
    """The page with the token given; any request elsewhere, script error or breach of its policy fails the test."""
    opened = browser.new_page()
    heard: list[str] = []
    opened.on("pageerror", lambda error: heard.append(str(error)))
    opened.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    opened.on(
        "request", lambda request: heard.append(request.url) if f":{server.rest_port}/" not in request.url else None
    )
    opened.goto(f"http://127.0.0.1:{server.rest_port}/ui")
    opened.get_by_label("Token of the server").fill(TOKEN)
    opened.get_by_role("button", name="Use").click()
    opened.wait_for_selector("#side-b tr")
    refused = "Failed to load resource: the server responded with a status of"  # as two tests ask for
    yield opened
    assert [text for text in heard if not text.startswith(refused)] == []
    opened.close()


def cells(page: Any, side: str, column: int) -> list[str]:
    return page.locator(f"#side-{side} tr td:nth-child({column})").all_inner_texts()


def wait_for_first(page: Any, side: str, text: str) -> None:
    page.locator(f"#side-{side} tr:nth-child(2) td:nth-child(2)", has_text=text).wait_for(timeout=10_000)


def test_empty_history_is_answered_by_both_models(page: Any) -> None:
    assert page.locator("#token-form").is_hidden()
    assert cells(page, "a", 2) == ["Red shoes i0", "Blue shoes i1", "Shoelaces, red i2", f"{ITEMS['i3']} i3"]
    assert cells(page, "a", 3) == ["0.9000", "0.5000", "0.2500", "0.1250"]
    assert cells(page, "b", 2)[0] == "Blue shoes i1"
    assert cells(page, "b", 4) == ["up 1", "up 1", "up 1", "not there"]
    assert "ms" in page.locator("#side-a .latency").inner_text()
    assert "3 of 4 in both" in page.locator("#side-b .latency").inner_text()


def test_titles_are_searched_and_added(page: Any) -> None:
    page.get_by_label("Search titles and ids").fill("img src")
    page.locator("#found button").click()  # its title is markup, which stays a text
    wait_for_first(page, "a", "i1")
    assert page.locator("#history li .title").all_inner_texts() == [f"{ITEMS['i3']} i3"]
    assert page.locator("img").count() == 0
    page.locator("#history select").select_option("cart")
    page.get_by_role("button", name="remove").click()
    wait_for_first(page, "a", "i0")
    assert page.locator("#history li").count() == 0


def test_users_and_models_are_chosen(page: Any) -> None:
    page.get_by_label("User").select_option(index=1)
    page.locator("#history li").first.wait_for()
    events = int(page.locator("#user option:checked").inner_text().rsplit("(", 1)[1].rstrip(")"))
    assert page.locator("#history li").count() == events
    wait_for_first(page, "a", f"i{events % 5}")
    page.get_by_label("Compared with").select_option("")
    playwright.expect(page.locator("#side-b tr")).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    wait_for_first(page, "a", "i0")


def test_what_the_server_refuses_is_said_until_it_answers(page: Any) -> None:
    answers = iter(['{"error": "<b>no</b>"}', '{"outputs": {"item_ids": [["i2"]], "scores": [[0.5]]}}'])
    statuses = iter([503, 200])
    page.route("**/versions/1:predict", lambda route: route.fulfill(status=next(statuses), body=next(answers)))
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page.locator("#message")).to_have_text("<b>no</b>")
    page.get_by_role("button", name="Clear").click()
    wait_for_first(page, "a", "i2")
    playwright.expect(page.locator("#message")).to_have_text("")
