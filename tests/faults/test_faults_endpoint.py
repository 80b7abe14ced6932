"""Servers that break off, send nonsense or hang: each has a sentence."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from test_endpoint import ModelStandIn, chat

from course_utils.errors import EndpointError
from course_utils.scoring import Endpoint


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")


@pytest.fixture
def server() -> Iterator[ModelStandIn]:
    """A server that answers with the question."""
    stand_in = ModelStandIn()
    yield stand_in
    stand_in.close()


class RawServer:
    """A server on loopback that sends what `speak` says, after it has read a request."""

    def __init__(self, speak: Callable[[socket.socket], None]):
        self.speak = speak
        self.asked = 0
        self.over = threading.Event()
        self.door = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.door.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self.door.accept()
            except OSError:
                return
            self.asked += 1
            threading.Thread(target=self._answer, args=(line,), daemon=True).start()

    def _answer(self, line: socket.socket) -> None:
        with line:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += line.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                while length and len(body) < int(length[1]):
                    body += line.recv(65536)
                self.speak(line)
            except OSError:
                pass

    def close(self) -> None:
        """Stop."""
        self.over.set()
        self.door.close()


@pytest.fixture
def raw() -> Iterator[Callable[[Callable[[socket.socket], None]], RawServer]]:
    """Makes raw servers, and stops them."""
    made: list[RawServer] = []

    def make(speak: Callable[[socket.socket], None]) -> RawServer:
        made.append(RawServer(speak))
        return made[-1]

    yield make
    for one in made:
        one.close()


def refusal(endpoint: Endpoint, prompts: object = "Who?") -> str:
    """What an endpoint says that cannot be asked."""
    with pytest.raises(EndpointError) as caught:
        endpoint(prompts)
    return str(caught.value)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BODY = chat("Yes.")


def sends(*parts: bytes) -> Callable[[socket.socket], None]:
    """A server's words, after which it hangs up."""
    return lambda line: [line.sendall(part) for part in parts]


BROKEN = {
    "a web page": (HEAD + b"\r\n<!doctype html><title>Sign in</title>", "not a chat completion"),
    "JSON that is cut": (HEAD + b"\r\n" + BODY[:60], "not a chat completion"),
    "a body that is cut": (
        HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:60],
        "cannot be reached",
    ),
    "chunks that are cut": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n20\r\n" + BODY[:32] + b"\r\n40\r\n{",
        "cannot be reached",
    ),
    "a head that is cut": (HEAD[:20], "cannot be reached"),
    "no answer": (b"", "cannot be reached"),
    "not HTTP": (b"220 mail.example ESMTP\r\n", "cannot be reached"),
    "not gzip": (
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        "cannot be reached",
    ),
    "an empty body": (HEAD + b"Content-Length: 0\r\n\r\n", "not a chat completion"),
    "brackets without end": (HEAD + b"\r\n" + b"[" * 100_000, "not a chat completion"),
    "a number of a million digits": (HEAD + b"\r\n" + b"1" * 1_000_000, "not a chat completion"),
    "another protocol's answer": (HEAD + b'\r\n{"result": "Yes."}', "not a chat completion"),
    "an empty reply": (HEAD + b"\r\n" + chat(""), "wrote no reply"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_answer_that_is_none(raw, fault: str) -> None:
    """What is wrong with it is said; no traceback of a library comes through."""
    words, said = BROKEN[fault]
    told = refusal(Endpoint("tiny", raw(sends(words)).address, max_retries=0))
    assert said in told
    assert len(told) < 900


def hang(before: bytes) -> Callable[[socket.socket], None]:
    """Some words, and then nothing more."""

    def speak(line: socket.socket) -> None:
        line.sendall(before)
        line.recv(1)  # until the other side hangs up

    return speak


@pytest.mark.parametrize("before", [b"", HEAD, HEAD + b"\r\n" + BODY[:60]])
def test_a_server_that_hangs(raw, before: bytes) -> None:
    """Before its answer or within it, the timeout ends the call."""
    told = refusal(Endpoint("tiny", raw(hang(before)).address, timeout=0.5, max_retries=0))
    assert "did not answer within 0.5 s" in told


BAD = {
    "model": [1, b"tiny", ["tiny"]],
    "base_url": [1, b"http://localhost", "localhost", "file:///etc/passwd"],
    "timeout": [None, 0, -1, float("nan"), float("inf"), "30", True, 10**30],
    "max_retries": [None, -1, 2.5, True, float("nan"), "2", 10**9],
    "key_variable": [None, "", "A=B", "A B", "A\0", 3],
}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, vs in BAD.items() for v in vs])
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    """By its name, before anything is asked."""
    with pytest.raises((ValueError, EndpointError), match=name):
        Endpoint(**{"model": "tiny", "base_url": "http://localhost/v1", name: value})


BAD_CALLS = [
    ({"prompts": None}, "prompts is None"),
    ({"prompts": 3}, "prompts is 3"),
    ({"prompts": ["a", None]}, r"prompts\[1\] is None"),
    ({"prompts": {"a": "b"}}, "prompts is"),
    ({"prompts": "\ud800"}, "lone surrogate"),
    ({"prompts": "a", "system": 3}, "system is 3"),
    ({"prompts": "a", "temperature": float("nan")}, "temperature is nan"),
    ({"prompts": "a", "temperature": float("inf")}, "temperature is inf"),
    ({"prompts": "a", "temperature": -1}, "temperature is -1"),
    ({"prompts": "a", "temperature": "0"}, "temperature is '0'"),
    ({"prompts": "a", "max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"prompts": "a", "max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
    ({"prompts": "a", "max_new_tokens": None}, "max_new_tokens is None"),
    ({"prompts": "a", "max_new_tokens": 10**30}, "max_new_tokens is 1"),
    ({"prompts": "a", "seed": "x"}, "seed is 'x'"),
    ({"prompts": "a", "seed": float("nan")}, "seed is nan"),
]


@pytest.mark.parametrize(("options", "said"), BAD_CALLS)
def test_a_bad_call_is_named(server: ModelStandIn, options: dict, said: str) -> None:
    """And the server is not asked."""
    options = dict(options)
    with pytest.raises(ValueError, match=said):
        Endpoint("tiny", server.address)(options.pop("prompts"), **options)
    assert server.requests == []
