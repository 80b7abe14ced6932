"""The endpoint against a server on loopback that misbehaves; the key never shows."""

from __future__ import annotations

import json
import logging
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from course_utils.errors import EndpointError
from course_utils.scoring import Endpoint, Judge

# A part of it would give it away too; it has characters that JSON, HTML and URLs write otherwise.
CANARY = 'sk-canary/QzXk"wQj+<Yg7>=JkVq'
PARTS = ["sk-canar", "QzXk", "wQj", "Yg7", "JkVq"]

Answer = tuple[int, dict[str, str], bytes]


def chat(content: object, finish: str = "stop") -> bytes:
    """A body as a server sends it for a reply."""
    choice = {"index": 0, "finish_reason": finish}
    choice["message"] = {"role": "assistant", "content": content}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()


def ok(content: object, finish: str = "stop") -> Answer:
    """An answer that went well."""
    return 200, {"Content-Type": "application/json"}, chat(content, finish)


def failed(status: int, message: object, **headers: str) -> Answer:
    """An answer that did not; underscores of the headers' names stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps({"error": {"message": message}}).encode()
    return status, {"Content-Type": "application/json", **named}, body


class ModelStandIn:
    """A server for models. `rule` answers a chat request; `requests` keeps what was asked."""

    def __init__(self) -> None:
        self.rule: Callable[[dict], Answer | None] = lambda body: ok(
            body["messages"][-1]["content"]
        )
        self.requests: list[tuple[str, Message, dict]] = []
        self.release = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *args: object) -> None:
                pass

            def send(self, answer: Answer | None) -> None:
                if answer is None:  # slow: until the test is over
                    stand_in.release.wait(60)
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.requests.append((self.path, self.headers, body))
                self.send(stand_in.rule(body))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop serving; whoever still waits is let go."""
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[ModelStandIn]:
    """A server that answers with the question."""
    stand_in = ModelStandIn()
    yield stand_in
    stand_in.close()


def hidden(text: str) -> bool:
    """Whether nothing of the key is in a text."""
    return not any(part in text for part in PARTS)


@pytest.fixture(autouse=True)
def _key(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> Iterator[None]:
    """A key is set in each test, all is logged, and nothing printed or logged shows it."""
    for name in ("JUDGE_MODEL", "JUDGE_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    yield
    out, err = capfd.readouterr()
    assert hidden(out + err)
    for record in caplog.get_records("call"):  # at this point caplog.records is empty
        assert hidden(f"{record.getMessage()} {record.__dict__}")


def trouble(endpoint: Endpoint, prompts: object = "Who?") -> str:
    """The text of the error that asking gives. Nothing of the key is in it, or reached from it."""
    with pytest.raises(EndpointError) as caught:
        endpoint(prompts)
    error = caught.value
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    everything = [str(error), repr(error), *traceback.format_exception(error), *shown.format()]
    everything += [repr(error.__dict__), repr(pickle.dumps(error))]
    assert all(hidden(text) for text in everything)
    assert error.__cause__ is None
    assert error.__context__ is None  # else what the library raised would be one step away
    assert len(str(error)) < 900
    return str(error)


def test_asking(server: ModelStandIn) -> None:
    """One prompt gives a text, a list a list; what is asked arrives as the protocol has it."""
    endpoint = Endpoint("tiny", server.address)
    assert endpoint("Who?") == "Who?"
    assert endpoint(["a", "b"]) == ["a", "b"]
    assert endpoint([]) == []
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {CANARY}"
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Who?"}],
        "temperature": 0,
        "max_tokens": 512,
    }
    endpoint("Who?", system="Be brief.", temperature=None, max_new_tokens=7, seed=3)
    body = server.requests[-1][2]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["max_tokens"], body["seed"]) == (7, 3)
    assert "temperature" not in body
    with pytest.raises(ValueError, match="prompts is ''"):
        endpoint(["a", ""])


def test_a_judge_asks_it(server: ModelStandIn) -> None:
    """It takes the place of a runner."""
    server.rule = lambda body: ok("It is right.\n[[B]]")
    judge = Judge(Endpoint("tiny", server.address), max_new_tokens=99)
    (verdict,) = judge.compare(["Who?"], ["I."], ["You."])
    assert verdict.winner == "second"
    assert server.requests[0][2]["max_tokens"] == 99


def test_the_environment_names_it(server: ModelStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and address by variable; without them the error says which."""
    assert not Endpoint.configured()
    with pytest.raises(EndpointError, match=r"JUDGE_MODEL.* and JUDGE_BASE_URL.*localhost"):
        Endpoint()
    monkeypatch.setenv("JUDGE_BASE_URL", server.address)
    assert not Endpoint.configured()
    with pytest.raises(EndpointError, match="JUDGE_MODEL"):
        Endpoint()
    monkeypatch.setenv("JUDGE_MODEL", "tiny")
    assert Endpoint.configured()
    assert Endpoint()("Who?") == "Who?"
    assert Endpoint("other")("Who?") == "Who?"
    assert [request[2]["model"] for request in server.requests] == ["tiny", "other"]


def test_the_key_is_read_at_each_call(
    server: ModelStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is needed, and no other one is sent; another variable may hold it."""
    endpoint = Endpoint("tiny", server.address, key_variable="OTHER_KEY")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin")
    endpoint("Who?")
    assert server.requests[-1][1]["Authorization"] == "Bearer none"
    monkeypatch.setenv("OTHER_KEY", "fresh\n")  # as a file read into a variable ends
    endpoint("Who?")
    assert server.requests[-1][1]["Authorization"] == "Bearer fresh"


def test_it_shows_and_keeps_no_key(server: ModelStandIn) -> None:
    """Not in what describes it, and not in what is saved of it, which works as the original."""
    endpoint = Endpoint("tiny", server.address)
    endpoint("Who?")
    saved = pickle.dumps(endpoint)
    for text in (repr(endpoint), str(endpoint), repr(vars(endpoint)), repr(saved)):
        assert hidden(text)
    assert repr(endpoint) == f"Endpoint('tiny', {server.address!r})"
    assert pickle.loads(saved)("Who?") == "Who?"


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000/v1",
        "ftp://localhost/v1",
        "https://user:secret@judge.example/v1",
        "https://judge.example/v1?api-key=secret",
        "http://127.0.0.1\\@judge.example/v1",
        "https://judge.example/v1 ",
    ],
)
def test_addresses_that_can_be_none(address: str) -> None:
    """Refused at once; what may be a secret in them is not repeated."""
    with pytest.raises(EndpointError, match="https://host:port/path") as caught:
        Endpoint("tiny", address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"timeout": 0}, "timeout is 0"), ({"max_retries": -1}, "max_retries is -1")],
)
def test_bad_options(options: dict, said: str) -> None:
    """The error says what is possible."""
    with pytest.raises(ValueError, match=said):
        Endpoint("tiny", "https://judge.example/v1", **options)


def test_the_key_does_not_travel_in_clear(
    server: ModelStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unencrypted, it goes to this machine only; without a key anything may be asked."""
    # The proxy is the way to a host that is not this one, and sees what would be sent to it.
    monkeypatch.setenv("HTTP_PROXY", server.address.removesuffix("/v1"))
    monkeypatch.setenv("NO_PROXY", "")
    for host in ("judge.example", "127.0.0.1.judge.example", "192.168.0.7", "localhost.example"):
        assert "in clear" in trouble(Endpoint("tiny", f"http://{host}/v1"))
    assert server.requests == []
    monkeypatch.delenv("OPENAI_API_KEY")
    assert Endpoint("tiny", "http://judge.example/v1")("Who?") == "Who?"


def test_no_proxy_for_this_machine(server: ModelStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server is asked directly: a proxy would see the key and could not reach it."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert Endpoint("tiny", server.address, max_retries=0)("Who?") == "Who?"


@pytest.mark.parametrize("key", ["sk-canary\nQzXk", "sk-canary QzXk", "sk-canary–QzXk"])
def test_what_can_be_no_key(
    server: ModelStandIn, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Told before the library meets it, whose error would show it."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert "OPENAI_API_KEY contains characters that no key has" in trouble(
        Endpoint("tiny", server.address)
    )
    assert server.requests == []


def test_nobody_listens() -> None:
    """Refused connections are told with the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        told = trouble(Endpoint("tiny", address, max_retries=0))
    assert f"{address} cannot be reached" in told
    assert "refused" in told


def test_a_slow_server(server: ModelStandIn) -> None:
    """A timeout is told with its length, and how often was tried."""
    server.rule = lambda body: None
    told = trouble(Endpoint("tiny", server.address, timeout=0.2, max_retries=1))
    assert "within 0.2 s, asked 2 times" in told
    assert len(server.requests) == 2


# What a server may say that has the key in it.
ECHOES = [
    f"Incorrect API key provided: {CANARY}.",
    f"Key {CANARY[:20]}... is unknown",
    f"Key {CANARY[:8]}*****{CANARY[-4:]} is unknown",
    f'{{"key": "{CANARY}"}}',
]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("said", ECHOES)
def test_a_server_that_repeats_the_key(server: ModelStandIn, status: int, said: object) -> None:
    """Whole, cut, half masked, in JSON: the error is told, the key is not."""
    server.rule = lambda body: failed(status, said)
    told = trouble(Endpoint("tiny", server.address, max_retries=0))
    assert str(status) in told
    assert "…" in told


@pytest.mark.parametrize("body", [f"<html>{CANARY}</html>", CANARY, "x" * 2990 + CANARY])
@pytest.mark.parametrize("status", [200, 400])
def test_a_body_that_repeats_the_key(server: ModelStandIn, status: int, body: str) -> None:
    """Also where it would be cut in the middle of the key."""
    server.rule = lambda _: (status, {}, body.encode())
    trouble(Endpoint("tiny", server.address, max_retries=0))


def test_a_reply_that_repeats_the_key(server: ModelStandIn) -> None:
    """Replies end up in saved notebooks; a dummy key may be a word in them."""
    server.rule = lambda body: ok(f"Your key is {CANARY}.")
    assert Endpoint("tiny", server.address)("Who?") == "Your key is …"


def test_a_dummy_key_is_no_secret(server: ModelStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply with a short key's letters in it stays as it is."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server.rule = lambda body: ok("There is none.")
    assert Endpoint("tiny", server.address)("Who?") == "There is none."


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "the request was refused"),
        (401, "the key in OPENAI_API_KEY was refused, or is not set"),
        (403, "the key in OPENAI_API_KEY may not use this model"),
        (404, "there is no such model, or the address lacks /v1"),
        (429, "too many requests"),
        (500, "a fault on the server's side"),
        (503, "it is overloaded, or still loading the model"),
    ],
)
def test_a_refusal_has_its_sentence(server: ModelStandIn, status: int, said: str) -> None:
    """With the server's own words."""
    server.rule = lambda body: failed(status, "Oh no.")
    told = trouble(Endpoint("tiny", server.address, max_retries=0))
    assert f"answered {status}: {said}" in told
    assert "Oh no." in told


def test_too_many_requests(server: ModelStandIn) -> None:
    """The library asks again after what the server says, and no more than is allowed."""
    waits = iter([failed(429, "slow down", Retry_After="0.01")] * 2 + [ok("At last.")])
    server.rule = lambda body: next(waits)
    assert Endpoint("tiny", server.address, max_retries=2)("Who?") == "At last."
    assert len(server.requests) == 3


@pytest.mark.parametrize("kind", ["application/json", "text/html"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<!doctype html><title>Welcome</title>", "not a chat completion"),
        (b"", "not a chat completion"),
        (b'{"choices": [', "not a chat completion"),
        (b"[" * 100_000, "not a chat completion"),
        (b"[]", "not a chat completion"),
        (b'{"error": {"message": "no credit"}}', "not a chat completion"),
        (b'{"choices": []}', "not a chat completion"),
        (b'{"choices": [{"message": null}]}', "not a chat completion"),
    ],
)
def test_answers_that_are_none(server: ModelStandIn, kind: str, body: bytes, said: str) -> None:
    """A status of 200 is not enough, whatever the type that the header claims."""
    server.rule = lambda _: (200, {"Content-Type": kind}, body)
    assert said in trouble(Endpoint("tiny", server.address, max_retries=0))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ok(""), "wrote no reply."),
        (ok(" \n"), "wrote no reply."),
        (ok(None), "wrote no reply."),
        (ok(None, finish="length"), "it used up max_new_tokens first"),
    ],
)
def test_empty_replies(server: ModelStandIn, answer: Answer, said: str) -> None:
    """A model that thinks first may have no tokens left for its reply."""
    server.rule = lambda _: answer
    assert said in trouble(Endpoint("tiny", server.address))


def test_a_redirect_is_told_not_followed(server: ModelStandIn) -> None:
    """The key and the prompts go only where they were sent."""
    other = ModelStandIn()
    try:
        server.rule = lambda body: (308, {"Location": f"{other.address}/chat/completions"}, b"")
        assert "answered 308" in trouble(Endpoint("tiny", server.address))
        assert other.requests == []
    finally:
        other.close()


def test_ctrl_c_ends_a_call(server: ModelStandIn) -> None:
    """Its traceback, too, has no frame with the key in it."""
    server.rule = lambda body: None
    main = threading.main_thread().ident
    threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        Endpoint("tiny", server.address, timeout=300)("Who?")
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert all(hidden(text) for text in shown.format())
    assert caught.value.__context__ is None


def test_models_with_another_name_for_the_limit(server: ModelStandIn) -> None:
    """Refused once, it is named so for the rest of the list; any other refusal is told."""

    def rule(body: dict) -> Answer:
        if "max_tokens" in body:
            return failed(400, "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return ok("Fine.")

    server.rule = rule
    assert Endpoint("tiny", server.address)(["a", "b"], max_new_tokens=5) == ["Fine."] * 2
    assert [body.get("max_completion_tokens") for *_, body in server.requests] == [None, 5, 5]
    server.rule = lambda body: failed(400, "The context is too long.")
    told = trouble(Endpoint("tiny", server.address))
    assert "The context is too long." in told
