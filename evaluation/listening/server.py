"""Serves a test's pages to raters and saves their answers: a small local server out of the standard library."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from audioldm2_pl.errors import UserError

from .batches import load_test
from .store import Answers, Refused

MAX_BODY_BYTES = 16_384
RATER_PARAMETERS = ("PROLIFIC_PID", "workerId", "rater")  # as in page.html
ALL_RATED = "<!doctype html><meta charset=utf-8><title>Listening test</title><p>You have rated everything. Thank you."


class ListeningServer(ThreadingHTTPServer):
    """GET / sends a rater to a batch; GET /batch-001.html; GET /api/rated; POST /api/ratings."""

    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int):
        self.answers = Answers(folder / "answers.sqlite", load_test(folder))
        self.pages = {f"/{batch}.html": folder / "pages" / f"{batch}.html" for batch in self.answers.test.pages}
        for batch, digest in self.answers.test.pages.items():
            page = self.pages[f"/{batch}.html"]
            if not page.is_file() or hashlib.sha256(page.read_bytes()).hexdigest() != digest:
                raise UserError(f"{page}: missing or changed since the test was built; put it back")
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"{host}:{port}: cannot listen there ({error}); choose another --port") from None

    def server_close(self) -> None:
        super().server_close()
        self.answers.close()


class Handler(BaseHTTPRequestHandler):
    server: ListeningServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a byte

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if address.path == "/":
            self.send_to_batch(query, address.query)
        elif address.path in self.server.pages:
            self.send(200, "text/html; charset=utf-8", self.server.pages[address.path].read_bytes())
        elif address.path == "/api/rated":
            self.send_result(lambda: {"rated": self.server.answers.rated(query.get("batch"), query.get("rater"))})
        else:
            self.send_json(404, {"error": "nothing here"})

    def do_POST(self) -> None:
        if self.path == "/api/ratings":
            self.send_result(self.take_ratings)
        else:
            self.close_connection = True  # the body stays unread
            self.send_json(404, {"error": "nothing here"})

    def send_to_batch(self, query: dict[str, str], passed_on: str) -> None:
        rater = next((query[name] for name in RATER_PARAMETERS if name in query), "")
        batch = self.server.answers.next_batch(rater)
        if batch is None:
            self.send(200, "text/html; charset=utf-8", ALL_RATED.encode())
            return
        self.send_response(302)
        self.send_header("Location", f"{batch}.html" + (f"?{passed_on}" if passed_on else ""))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def take_ratings(self) -> dict:
        content = self.read_body()
        names = {"batch", "rater", "item", "answers", "seconds"}
        if not isinstance(content, dict) or set(content) != names:
            raise Refused(400, f"a rating has {', '.join(sorted(names))}, nothing more or less")
        return {"saved": True, "new": self.server.answers.record(**content)}

    def read_body(self) -> Any:
        self.close_connection = True  # unless the body was read whole
        if self.headers.get_content_type() != "application/json":  # what a form of another site cannot send
            raise Refused(415, "ratings come as application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(411, "Content-Length is missing")
        if int(length) > MAX_BODY_BYTES:
            raise Refused(413, f"more than {MAX_BODY_BYTES} bytes")
        body = self.rfile.read(int(length))
        self.close_connection = False
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "is no JSON") from None

    def send_result(self, work: Any) -> None:
        try:
            self.send_json(200, work())
        except Refused as refusal:
            self.send_json(refusal.status, {"error": str(refusal)})

    def send_json(self, status: int, content: dict) -> None:
        self.send(status, "application/json", json.dumps(content).encode())

    def send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: addresses hold raters' names."""


def serve(folder: Path, host: str, port: int) -> None:
    """Until interrupted."""
    server = ListeningServer(folder, host, port)
    address, number = server.server_address[:2]
    print(f"listening test: http://{address!s}:{number}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped; all answers are saved")
    finally:
        server.server_close()
