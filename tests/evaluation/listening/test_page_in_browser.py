"""The raters' page in a real browser: real keys, real clicks, real sound, up to SQLite."""

import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from listening_material import honest, ratings_of_batch, start_server

from evaluation.listening.analysis import analyse
from evaluation.listening.batches import ListeningTest, load_test
from evaluation.listening.exchange import export_mturk
from evaluation.listening.server import ListeningServer
from evaluation.listening.store import Answers

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
HEARD = "!document.querySelector('fieldset').disabled"
RATING = "!document.getElementById('rate').hidden"
ENDED = "!document.getElementById('end').hidden"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def server(folder) -> Iterator[ListeningServer]:
    server = ListeningServer(folder, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server: ListeningServer, path: str = "") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{path}"


def rate_with_keys(browser: Browser, test: ListeningTest, batch: str = "batch-001", clips: int | None = None) -> None:
    """Space, digits, Enter for every clip, as `honest`; begins on a clip's page."""
    items = {item.name: item for item in test.batch(batch).items}
    for _ in range(clips or len(items)):
        name = browser.run("waiting[0].name")
        browser.press("3")  # too early: not heard yet
        assert browser.run("document.querySelector(':checked')") is None
        browser.press(" ")
        browser.wait_for(HEARD)
        for question in test.questions_of(items[name]):
            browser.press(str(honest(items[name], question)))
        assert not browser.run("document.getElementById('next').disabled")
        browser.press("Enter")
        browser.wait_for(f"waiting.length ? waiting[0].name !== '{name}' : {ENDED}")


def kept(answers: Answers, rater: str) -> dict:
    found: dict[str, dict[str, int]] = {}
    for answer in answers.answers():
        if answer.rater == rater:
            found.setdefault(answer.item, {})[answer.question] = answer.rating
    return found


def test_a_batch_is_rated_with_the_keyboard_from_end_to_end(browser, server):
    test = server.answers.test
    browser.open(address(server, "?PROLIFIC_PID=ann"))
    assert browser.run("location.pathname") == "/batch-001.html"
    assert "Overall impression" in browser.text() and "Examples" in browser.text()
    assert not browser.run("document.getElementById('rater').offsetParent")  # the platform has named the rater
    browser.click("#start")
    browser.wait_for(RATING)
    order = browser.run("waiting.map(item => item.name)")
    assert sorted(order) == [item.name for item in test.batches[0].items]
    started = time.time()
    rate_with_keys(browser, test)
    assert "All your answers are kept" in browser.text()
    assert kept(server.answers, "ann") == ratings_of_batch(test, test.batches[0])
    answers = sorted(server.answers.answers(), key=lambda answer: answer.answered)
    assert list(dict.fromkeys(answer.item for answer in answers)) == order
    assert all(0.2 < answer.seconds < time.time() - started for answer in answers)  # the clip's length at least
    results = analyse(test, server.answers.answers(), {})
    assert results["raters"]["counted"] == 1
    assert results["questions"]["OVL"]["systems"]["thin"]["mean"] == 4

    browser.open(address(server, "batch-001.html?PROLIFIC_PID=ann"))
    browser.click("#start")
    browser.wait_for(ENDED)
    assert "You have rated this batch already" in browser.text()
    browser.open(address(server, "?PROLIFIC_PID=ann"))  # on to what is left
    assert browser.run("location.pathname") == "/batch-002.html"


def test_a_batch_is_rated_with_a_finger_on_a_phone(browser, server):
    test = server.answers.test
    items = {item.name: item for item in test.batches[1].items}
    browser.resize(390, 844, mobile=True)
    try:
        browser.open(address(server, "batch-002.html"))
        assert browser.run("document.documentElement.scrollWidth") <= 390
        browser.click("#start")
        assert browser.run("document.getElementById('rate').hidden")  # a rater needs a name
        browser.tap("#rater")
        browser.write("bob@phone")
        browser.tap("#start")
        browser.wait_for(RATING)
        for number in range(len(items)):
            item = items[browser.run("waiting[0].name")]
            browser.tap("#play")
            browser.wait_for(HEARD)
            for question in test.questions_of(item):
                browser.tap(f"label:has(input[name='{question}'][value='{honest(item, question)}'])")
            assert browser.run("document.documentElement.scrollWidth") <= 390
            sizes = browser.run("[...document.querySelectorAll('.option, button:not([disabled])')].filter(e => "
                                "e.offsetParent).map(e => Math.min(e.offsetWidth, e.offsetHeight))")  # fmt: skip
            assert min(sizes) >= 44  # pixels: what a finger hits
            browser.tap("#next")
            browser.wait_for(f"waiting.length === {len(items) - number - 1}")
        browser.wait_for(ENDED)
    finally:
        browser.resize(1200, 900, mobile=False)
    assert kept(server.answers, "bob@phone") == ratings_of_batch(test, test.batches[1])


def test_a_rater_goes_on_after_the_server_was_killed_and_the_page_closed(browser, folder):
    test = load_test(folder)
    process, port = start_server(folder)
    try:
        browser.open(f"http://127.0.0.1:{port}/batch-001.html?rater=eve")
        browser.click("#start")
        browser.wait_for(RATING)
        rate_with_keys(browser, test, clips=3)
        item = next(i for i in test.batches[0].items if i.name == browser.run("waiting[0].name"))
        process.kill()
        process.communicate()
        browser.press(" ")
        browser.wait_for(HEARD)
        for question in test.questions_of(item):
            browser.press(str(honest(item, question)))
        browser.press("Enter")
        browser.wait_for("document.body.innerText.includes('No connection')")
        process, _ = start_server(folder, port)
        browser.wait_for(f"waiting[0].name !== '{item.name}'")
        browser.open(f"http://127.0.0.1:{port}/batch-001.html?rater=eve")
        browser.click("#start")
        browser.wait_for(RATING)
        assert browser.run("document.getElementById('place').textContent").startswith("Clip 5 of")
        rate_with_keys(browser, test, clips=len(test.batches[0].items) - 4)
    finally:
        process.kill()
        process.communicate()
    answers = Answers(folder / "answers.sqlite", test)
    assert kept(answers, "eve") == ratings_of_batch(test, test.batches[0])
    answers.close()


def test_in_mechanical_turks_frame_the_ratings_go_to_the_form(browser, answers, tmp_path):
    """Pages on a server of static files, in the project's layout with its variable filled in as the site does it."""
    test, pages = answers.test, tmp_path / "test" / "pages"
    handler = functools.partial(QuietFiles, directory=str(pages))
    files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=files.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{files.server_address[1]}"
    _, layout = export_mturk(test, url, tmp_path)
    html = layout.read_text().replace("${page_url}", f"{url}/batch-001.html").replace("https://assets.crowd.aws/", "")
    (pages / "hit.html").write_text(html)
    try:
        browser.open(f"{url}/hit.html?workerId=W1&assignmentId=A1")
        browser.wait_for("frames[0]?.document.getElementById('start')")
        assert browser.run("document.getElementById('ratings').value") == ""
        browser.in_frame = True
        assert browser.run("location.search") == "?workerId=W1"
        browser.click("#start")
        browser.wait_for(RATING)
        rate_with_keys(browser, test)
        browser.in_frame = False
        browser.wait_for("document.getElementById('ratings').value")
        ratings = json.loads(browser.run("document.getElementById('ratings').value"))
        assert "All clips are rated" in browser.text()
    finally:
        browser.in_frame = False
        files.shutdown()
        files.server_close()
    assert answers.answers() == []  # the page in the frame asks no server
    assert answers.record_all("batch-001", "W1", ratings)
    assert kept(answers, "W1") == ratings_of_batch(test, test.batches[0])


def test_opened_as_a_file_it_says_that_nothing_is_kept(browser, folder):
    browser.open((Path(folder) / "pages" / "batch-001.html").as_uri())
    assert "keeps no answers when it is opened as a file" in browser.text()
    assert browser.run("document.getElementById('start').disabled")


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass
