"""A local web server with configurable faults, and downloads without pauses between attempts."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from fedsieve.data import store


@dataclass
class Answer:
    """The response to one request; ``size`` is the Content-Length, by default that of the body."""

    body: bytes = b""
    status: int = 200
    size: int | None = None


@dataclass
class Server:
    """``answers`` to each path, one after the other, the last one forever; ``asked`` lists the requests."""

    url: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    barrier: threading.Barrier | None = None  # holds answers back until so many requests have come

    def serve(self, path: str, *answers: Answer | bytes) -> None:
        self.answers[path] = [answer if isinstance(answer, Answer) else Answer(answer) for answer in answers]

    def answer(self, path: str) -> Answer:
        self.asked.append(path)
        if self.barrier:
            self.barrier.wait(timeout=10)
        answers = self.answers.get(path, [Answer(status=404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = state.answer(unquote(self.path))
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body) if answer.size is None else answer.size))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, no proxy, no mirror from the environment."""
    monkeypatch.setattr(store, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("FEDSIEVE_MIRROR", raising=False)
