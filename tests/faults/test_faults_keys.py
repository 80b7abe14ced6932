"""A server that echoes the key, in whole or in part, in every form: nothing of it is shown."""

from __future__ import annotations

import base64
import html
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from conftest import ROOT
from test_endpoint import ModelStandIn, failed, ok

from course_utils.errors import EndpointError
from course_utils.scoring.endpoint import Endpoint, _redact

KEY = 'sk-canary/Zq7xK"wQ9j+<Yg7>=JkVq-3fT&8sLm%41\\u0041pR2_tail'
PIECES = {"whole": KEY, "middle": KEY[14:22], "end": KEY[-9:]}


def code64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "reversed": lambda piece: piece[::-1],
    "upper": str.upper,
    "lower": str.lower,
    "base64": code64,
    "base64 of the header": lambda piece: code64(f"Bearer {piece}"),
    "base64 in the middle": lambda piece: code64(f"ab{piece}cd"),
    "base64 reversed": lambda piece: code64(piece[::-1]),
    "base64url": lambda piece: base64.urlsafe_b64encode(f"a{piece}".encode()).decode().rstrip("="),
    "hex": lambda piece: piece.encode().hex(),
    "HEX": lambda piece: piece.encode().hex().upper(),
    "hex with colons": lambda piece: piece.encode().hex(":"),
    "url": lambda piece: quote(piece, safe=""),
    "url, each character": lambda piece: "".join(f"%{ord(c):02X}" for c in piece),
    "url, twice": lambda piece: quote(quote(piece, safe=""), safe=""),
    "html": html.escape,
    "html, numbers": lambda piece: "".join(f"&#{ord(c)};" for c in piece),
    "html, hexadecimal": lambda piece: "".join(f"&#x{ord(c):x};" for c in piece),
    "json": lambda piece: json.dumps(piece)[1:-1],
    "json, slashes": lambda piece: json.dumps(piece)[1:-1].replace("/", "\\/"),
    "json, each character": lambda piece: "".join(f"\\u{ord(c):04x}" for c in piece),
    "python": lambda piece: "".join(f"\\x{ord(c):02x}" for c in piece),
    "json in json": lambda piece: json.dumps(json.dumps(piece)[1:-1])[1:-1],
    "html in json": lambda piece: json.dumps(html.escape(piece))[1:-1],
    "blanks": " ".join,
    "line breaks": lambda piece: "\n".join(piece[i : i + 5] for i in range(0, len(piece), 5)),
    "without width": "\u200b".join,
    "dots": lambda piece: f"{piece}…",
    "quoted": lambda piece: f"'{piece}'",
}
CASES = [
    pytest.param(form, piece, id=f"{form}-{piece}")
    for form in FORMS
    for piece in PIECES
    if not (form in ("dots", "quoted") and piece != "end")
]


def squeezed(text: str) -> str:
    return "".join(c for c in text if "!" <= c <= "~").lower()


def shown_of(form: str, text: str) -> set[str]:
    """What eight characters of a form stand in a text."""
    form, text = squeezed(form), squeezed(text)
    # Hexadecimal and escapes take several characters for one.
    size = 8 if len(form) < 20 else 16
    return {form[i : i + size] for i in range(len(form) - size + 1)} & {
        text[i : i + size] for i in range(len(text) - size + 1)
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelStandIn]:
    """A server, and the key for it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stand_in = ModelStandIn()
    yield stand_in
    stand_in.close()


@pytest.mark.parametrize(("form", "piece"), CASES)
def test_a_server_that_echoes_the_key(server: ModelStandIn, form: str, piece: str) -> None:
    """In a refusal, in a body that is no answer, and in a reply."""
    echo = FORMS[form](PIECES[piece])
    endpoint = Endpoint("tiny", server.address, max_retries=0)
    for rule in (
        failed(400, f"You sent {echo}, which is wrong"),
        (200, {}, f"You sent {echo} to us".encode()),
    ):
        server.rule = lambda _, rule=rule: rule
        with pytest.raises(EndpointError) as caught:
            endpoint("Who?")
        assert not shown_of(echo, str(caught.value)), str(caught.value)
        assert "…" in str(caught.value)
    server.rule = lambda _: ok(f"You sent {echo} to me, [[A]].")
    reply = endpoint("Who?")
    assert not shown_of(echo, reply), reply
    assert reply.startswith("You sent ")
    assert reply.endswith("to me, [[A]].")


def test_what_is_no_piece_of_the_key_stays() -> None:
    """A redaction that ate everything would hide nothing well."""
    text = json.dumps({"winner": "A", "reason": "50% of <b>these</b> & \\u00e9 % 1+1=2 sk- Zq7xK"})
    assert _redact(text, KEY) == text


@pytest.mark.parametrize("key", ["sk-no-key-required", "lm-studio", "not-needed", "placeholder"])
def test_a_key_that_servers_tell_everybody_is_no_secret(
    server: ModelStandIn, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Its words stay in a reply: a judge's words must not change."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said = f"What is required is {key}; the placeholder is not needed. [[B]]"
    server.rule = lambda _: ok(said)
    assert Endpoint("tiny", server.address)("Who?") == said


@pytest.mark.parametrize("unit", ["%25", "\\u0041", "&amp;", KEY, KEY[:9], "a ", "%", "\\", "&a"])
def test_hiding_takes_time_in_proportion(unit: str) -> None:
    """A megabyte of anything is looked through in seconds."""
    started = time.monotonic()
    told = _redact(unit * (1_000_000 // len(unit)), KEY)
    assert time.monotonic() - started < 60
    assert KEY not in told


ASK = """
import logging, os, sys
if os.environ.pop("ALL_LOGS", None):
    logging.basicConfig(level=logging.DEBUG)
from course_utils.errors import EndpointError
from course_utils.scoring.endpoint import Endpoint
try:
    print(Endpoint("tiny", sys.argv[1], max_retries=1)("Who?"))
except EndpointError as error:
    print("refused:", error)
"""


def asked_in_a_process(address: str, **environment: str) -> str:
    """What a program prints that asks a server, on both of its streams."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, address],
        env={**os.environ, "OPENAI_API_KEY": KEY, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_the_key_along(server: ModelStandIn, status: int) -> None:
    """The other server hears nothing; with everything logged, nobody sees the key."""
    other = ModelStandIn()
    try:
        where = f"{other.address}/chat?key={quote(KEY, safe='')}&again={code64(KEY)}#{KEY[-9:]}"
        server.rule = lambda _: (status, {"Location": where}, b"")
        told = asked_in_a_process(server.address, OPENAI_LOG="debug", ALL_LOGS="1")
    finally:
        other.close()
    assert other.requests == []
    assert len(server.requests) == 1
    assert f"refused: {server.address} points to" in told
    assert "DEBUG" in told  # something was logged
    for form in (KEY, quote(KEY, safe=""), code64(KEY)):
        assert not shown_of(form, told), told


@pytest.mark.parametrize("logs", [{"OPENAI_LOG": "debug"}, {"OPENAI_LOG": "info", "ALL_LOGS": "1"}])
@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_no_log_shows_the_key(server: ModelStandIn, status: int, logs: dict[str, str]) -> None:
    """What is sent, and what a server puts into its headers and bodies."""
    echo = {"X-Request-Id": KEY, "X-You-Sent": KEY[::-1], "X-Again": code64(f"Bearer {KEY}")}
    body = json.dumps({"error": {"message": KEY}}).encode()
    server.rule = lambda _: (status, {**echo, "Retry-After": "0.01"}, body)
    told = asked_in_a_process(server.address, **logs)
    assert "refused" in told
    for form in (KEY, KEY[::-1], code64(f"Bearer {KEY}")):
        assert not shown_of(form, told), told


def test_the_logs_are_as_before_afterwards(server: ModelStandIn) -> None:
    """No filter stays behind."""
    import logging

    server.rule = lambda _: ok("Yes.")
    before = {name: list(getattr(log, "filters", [])) for name, log in logger_items(logging)}
    Endpoint("tiny", server.address)("Who?")
    for _ in range(100):
        after = {name: list(getattr(log, "filters", [])) for name, log in logger_items(logging)}
        if all(after[name] == filters for name, filters in before.items()):
            break
        time.sleep(0.05)
    assert {name: after[name] for name in before} == before


def logger_items(logging) -> list[tuple[str, object]]:
    return [
        (name, log)
        for name, log in logging.root.manager.loggerDict.items()
        if name.split(".")[0] in ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
    ]
