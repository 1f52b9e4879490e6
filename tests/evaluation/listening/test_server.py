import http.client
import json
import os
import signal
import threading

import pytest
from listening_material import ratings_of_batch, start_server

from audioldm2_pl.errors import UserError
from evaluation.listening.batches import load_test
from evaluation.listening.server import ListeningServer
from evaluation.listening.store import Answers


@pytest.fixture
def server(folder):
    server = ListeningServer(folder, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port: int, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
    """=> status, headers, body"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def send(port: int, content: object, headers: dict | None = None) -> tuple[int, dict]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"Content-Type": "application/json"} if headers is None else headers
    status, _, answer = ask(port, "POST", "/api/ratings", body, headers)
    return status, json.loads(answer)


def message(server: ListeningServer, rater: str = "ann", number: int = 0, **change) -> dict:
    batch = server.answers.test.batches[0]
    item, answers = list(ratings_of_batch(server.answers.test, batch).items())[number]
    return {"batch": batch.name, "rater": rater, "item": item, "answers": answers, "seconds": 2.5} | change


def test_pages_and_nothing_else_are_served(server, folder):
    port = server.server_address[1]
    status, headers, body = ask(port, "GET", "/batch-002.html?rater=ann")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert body == (folder / "pages" / "batch-002.html").read_bytes()
    for path in (
        "/test.json",
        "/../test.json",
        "/%2e%2e/test.json",
        "/answers.sqlite",
        "/pages/",
        "/batch-009.html",
        "//x",
    ):
        assert ask(port, "GET", path)[0] == 404
    assert ask(port, "POST", "/batch-001.html", b"x")[0] == 404
    assert ask(port, "DELETE", "/batch-001.html")[0] == 501


def test_ratings_are_taken_once(server):
    port = server.server_address[1]
    assert send(port, message(server)) == (200, {"saved": True, "new": True})
    assert send(port, message(server)) == (200, {"saved": True, "new": False})
    other = {name: rating % 5 + 1 for name, rating in message(server)["answers"].items()}
    status, answer = send(port, message(server, answers=other))
    assert status == 409 and "cannot be changed" in answer["error"]
    status, _, body = ask(port, "GET", "/api/rated?batch=batch-001&rater=ann")
    assert status == 200 and json.loads(body) == {"rated": [message(server)["item"]]}
    assert ask(port, "GET", "/api/rated?batch=batch-001")[0] == 400


def test_malformed_requests_are_refused(server):
    port = server.server_address[1]
    for content in (
        [],
        "x",
        None,
        {},
        message(server, more=1),
        message(server, rater="a b"),
        message(server, item=["1"]),
    ):
        assert send(port, content)[0] == 400
    without = message(server)
    del without["seconds"]
    assert send(port, without)[0] == 400
    for body in (b"", b"{", b"\xff\xfe", b"[" * 10_000):
        assert send(port, body)[0] == 400
    assert send(port, message(server), {"Content-Type": "text/plain"})[0] == 415
    assert send(port, message(server), {})[0] == 415
    assert send(port, b" " * 20_000)[0] == 413
    assert send(port, message(server), {"Content-Type": "application/json", "Content-Length": "ten"})[0] == 411
    assert server.answers.answers() == []


def test_the_bare_address_sends_a_rater_to_a_batch(server):
    port = server.server_address[1]
    status, headers, _ = ask(port, "GET", "/?PROLIFIC_PID=ann&STUDY_ID=s")
    assert status == 302 and headers["Location"] == "batch-001.html?PROLIFIC_PID=ann&STUDY_ID=s"
    assert ask(port, "GET", "/")[1]["Location"] == "batch-001.html"
    for batch in server.answers.test.batches:
        server.answers.record_all(batch.name, "ann", ratings_of_batch(server.answers.test, batch))
    assert ask(port, "GET", "/?rater=bob")[1]["Location"] == "batch-001.html?rater=bob"
    assert b"rated everything" in ask(port, "GET", "/?rater=ann")[2]


def test_a_server_that_cannot_start_says_why(server, folder):
    with pytest.raises(UserError, match="choose another --port"):
        ListeningServer(folder, "127.0.0.1", server.server_address[1])
    with pytest.raises(UserError, match="choose another --port"):
        ListeningServer(folder, "127.0.0.1", 99_999)
    page = folder / "pages" / "batch-002.html"
    page.write_text(page.read_text() + " ")
    with pytest.raises(UserError, match=r"batch-002.html: missing or changed"):
        ListeningServer(folder, "127.0.0.1", 0)
    page.unlink()
    with pytest.raises(UserError, match=r"batch-002.html: missing or changed"):
        ListeningServer(folder, "127.0.0.1", 0)


def test_a_killed_server_has_lost_nothing(folder):
    """SIGKILL right after an answer's arrival, again and again in the middle of a batch."""
    test = load_test(folder)
    batch = test.batches[0]
    ratings = ratings_of_batch(test, batch)
    names = list(ratings)
    told: set[tuple[str, str]] = set()
    for part in (names[:4], names[4:5], names[5:]):
        process, port = start_server(folder)
        try:
            for name in part:
                for rater in ("ann", "bob"):
                    content = {
                        "batch": batch.name,
                        "rater": rater,
                        "item": name,
                        "answers": ratings[name],
                        "seconds": 1,
                    }
                    assert send(port, content)[0] == 200
                    told.add((rater, name))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait(20) == -signal.SIGKILL
            process.stdout.close()
        answers = Answers(folder / "answers.sqlite", test)
        kept = answers.answers()
        answers.close()
        assert {(a.rater, a.item) for a in kept} == told
        assert all(ratings[a.item][a.question] == a.rating for a in kept)
        assert len(kept) == sum(len(ratings[name]) for _, name in told)
    assert len(told) == 2 * len(batch.items)
