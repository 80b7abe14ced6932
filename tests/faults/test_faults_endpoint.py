"""Servers that refuse, lie, break off, hang or trickle: each has a sentence, and a call an end."""

from __future__ import annotations

import gzip
import itertools
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from test_endpoint import ModelStandIn, chat, failed, ok

from course_utils.errors import EndpointError
from course_utils.scoring.endpoint import Endpoint

GENEROUS = 40  # seconds, on a machine that has other things to do


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

STATUSES = {
    400: "does not take the request",
    401: "OPENAI_API_KEY was refused. Set that variable to a key that is valid",
    403: "OPENAI_API_KEY may not use this model",
    404: "was not found (404)",
    408: "answered 408",
    413: "answered 413",
    422: "answered 422",
    429: "too many requests",
    500: "a fault on its side",
    502: "a fault on its side",
    503: "overloaded, or still loading the model",
    504: "a fault on its side",
}


@pytest.mark.parametrize("said", ["json", "page", "nothing"])
@pytest.mark.parametrize("status", STATUSES)
def test_a_refusal_has_its_sentence(server: ModelStandIn, status: int, said: str) -> None:
    """With the server's own words in JSON, a web page or nothing behind it."""
    page = (status, {"Content-Type": "text/html"}, b"<html><b>Oh no.</b></html>")
    answers = {"json": failed(status, "Oh no."), "page": page, "nothing": (status, {}, b"")}
    server.rule = lambda _: answers[said]
    told = refusal(Endpoint("tiny", server.address, max_retries=0))
    assert STATUSES[status] in told
    assert str(status) in told
    assert ("Oh no." in told) is (said == "json")
    assert "<" not in told


def test_each_refusal_has_another_sentence(server: ModelStandIn) -> None:
    """401, 403, 404, 429, 500 and 503 are told apart, and each says what to do."""
    told = set()
    for status in (401, 403, 404, 429, 500, 503):
        server.rule = lambda _, status=status: (status, {}, b"")
        told.add(refusal(Endpoint("tiny", server.address, max_retries=0)).replace(str(status), ""))
    assert len(told) == 6


def sends(*parts: bytes) -> Callable[[socket.socket], None]:
    """A server's words, after which it hangs up."""
    return lambda line: [line.sendall(part) for part in parts]


BROKEN = {
    "a web page": (HEAD + b"\r\n<!doctype html><title>Sign in</title>", "a web page instead of"),
    "a web page with a mark before": (HEAD + b"\r\n\xef\xbb\xbf\n<html>", "a web page instead of"),
    "JSON that is cut": (HEAD + b"\r\n" + BODY[:60], "no JSON, as it ends too early"),
    "a body that is cut": (
        HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:60],
        "broke off in the middle",
    ),
    "chunks that are cut": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n20\r\n" + BODY[:32] + b"\r\n40\r\n{",
        "broke off in the middle",
    ),
    "a head that is cut": (HEAD[:20], "cannot be reached"),
    "no answer": (b"", "cannot be reached"),
    "not HTTP": (b"220 mail.example ESMTP\r\n", "cannot be reached"),
    "not gzip": (
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        "cannot be unpacked",
    ),
    "gzip that is cut": (
        HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(BODY * 50)[:40],
        "no JSON",
    ),
    "an empty body": (HEAD + b"Content-Length: 0\r\n\r\n", "no JSON"),
    "brackets without end": (HEAD + b"\r\n" + b"[" * 100_000, "no JSON"),
    "objects without end": (HEAD + b"\r\n" + b'{"choices":' * 100_000, "no JSON"),
    "a number of a million digits": (HEAD + b"\r\n" + b"1" * 1_000_000, "no JSON"),
    "another protocol's answer": (HEAD + b'\r\n{"result": "Yes."}', "without choices"),
    "an empty reply": (HEAD + b"\r\n" + chat(""), "an empty reply"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_answer_that_is_none(raw, fault: str) -> None:
    """What is wrong with it is said; no traceback of a library comes through."""
    words, said = BROKEN[fault]
    told = refusal(Endpoint("tiny", raw(sends(words)).address, max_retries=0))
    assert said in told
    assert len(told) < 900


def test_half_a_character_is_mended(server: ModelStandIn) -> None:
    """A lone surrogate in a reply could be neither printed nor saved."""
    server.rule = lambda _: ok("x\ud83dy")
    reply = Endpoint("tiny", server.address)("Who?")
    assert reply.encode() == "x\ufffdy".encode()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "wait", ["3600", "1e9", "inf", "nan", "-1", "Wed, 21 Oct 2099 07:28:00 GMT", "soon"]
)
def test_a_wait_is_never_an_hour(server: ModelStandIn, wait: str, status: int) -> None:
    """Whatever the server asks for; the error tells it."""
    server.rule = lambda _: failed(status, "slow down", Retry_After=wait)
    started = time.monotonic()
    told = refusal(Endpoint("tiny", server.address, max_retries=1))
    assert time.monotonic() - started < GENEROUS
    assert str(status) in told
    assert status != 429 or wait in told


def trickle(before: bytes, byte: bytes = b" ") -> Callable[[socket.socket], None]:
    """Some words, and then a byte at a time, without end."""

    def speak(line: socket.socket) -> None:
        line.sendall(before)
        for _ in itertools.count():
            line.sendall(byte)
            time.sleep(0.1)

    return speak


def hang(before: bytes) -> Callable[[socket.socket], None]:
    """Some words, and then nothing more."""

    def speak(line: socket.socket) -> None:
        line.sendall(before)
        line.recv(1)  # until the other side hangs up

    return speak


ENDLESS = {
    "a head that trickles": trickle(b"HTTP/1.1 200 OK\r\nX-Slow: "),
    "headers that trickle": trickle(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "a body that trickles": trickle(HEAD + b"\r\n"),
    "a body that trickles letters": trickle(HEAD + b"\r\n" + BODY[:60], b"x"),
    "chunks that trickle": trickle(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a refusal that trickles": trickle(b"HTTP/1.1 500 Oh\r\n\r\n"),
    "a page not found that trickles": trickle(b"HTTP/1.1 404 Oh\r\n\r\n"),
    "a server that hangs": hang(b""),
    "a server that hangs in its head": hang(HEAD),
    "a server that hangs in its body": hang(HEAD + b"\r\n" + BODY[:60]),
}


@pytest.mark.parametrize("fault", ENDLESS)
def test_a_call_has_an_end(raw, fault: str) -> None:
    """No server can hold a call for longer than `longest`, and afterwards the line is closed."""
    endless = raw(ENDLESS[fault])
    endpoint = Endpoint("tiny", endless.address, timeout=30, max_retries=0, longest=1.5)
    started = time.monotonic()
    told = refusal(endpoint)
    assert time.monotonic() - started < GENEROUS / 2
    assert "took longer than 1.5 s for one prompt" in told
    assert "longest=" in told
    if "trickle" in fault:  # nobody listens any more
        for _ in range(400):
            if not any("_ask" in thread.name for thread in threading.enumerate()):
                break
            time.sleep(0.1)
        else:
            pytest.fail("the thread that asks goes on")


def test_an_end_for_each_prompt_of_a_list(server: ModelStandIn) -> None:
    """Many prompts may take longer in all; one that hangs ends the call."""

    def rule(body: dict):
        time.sleep(0.3)
        return None if body["messages"][-1]["content"] == "last" else ok("Yes.")

    server.rule = rule
    endpoint = Endpoint("tiny", server.address, timeout=30, max_retries=0, longest=2.5)
    assert endpoint(["a"] * 10) == ["Yes."] * 10
    assert "took longer than 2.5 s" in refusal(endpoint, ["a", "b", "last"])


def test_the_end_is_known() -> None:
    """By default it follows from timeout and retries, as the documentation says."""
    assert Endpoint("tiny", "http://localhost/v1").longest == 30 * 3 + 60
    assert Endpoint("tiny", "http://localhost/v1", timeout=600).longest == 600 * 3 + 60
    assert "longest" in Endpoint.__doc__


def test_ctrl_c_ends_a_call(raw) -> None:
    """Interrupting does not wait for the server."""
    silent = raw(hang(b""))
    endpoint = Endpoint("tiny", silent.address, timeout=300, max_retries=0)
    main = threading.main_thread().ident
    threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        endpoint("Who?")
    assert time.monotonic() - started < GENEROUS


BAD = {
    "model": [1, b"tiny", ["tiny"]],
    "base_url": [1, b"http://localhost", "localhost", "file:///etc/passwd"],
    "timeout": [None, 0, -1, float("nan"), float("inf"), "30", True, 10**30],
    "max_retries": [None, -1, 2.5, True, float("nan"), "2", 10**9],
    "key_variable": [None, "", "A=B", "A B", "A\0", 3],
    "allow_plain_http": ["no", 1, None],
    "longest": [0, -1, float("nan"), float("inf"), "60", 10**30],
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
