"""A server that echoes the key, in whole or in part: nothing of it is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from conftest import ROOT
from test_endpoint import ModelStandIn, failed, ok

from course_utils.errors import EndpointError
from course_utils.scoring import Endpoint
from course_utils.scoring._endpoint import _hide

KEY = 'sk-canary/Zq7xK"wQ9j+<Yg7>=JkVq-3fT&8sLm%41\\u0041pR2_tail'
PIECES = {"whole": KEY, "middle": KEY[14:24], "end": KEY[-9:]}
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "cut": lambda piece: f"{piece}…",
    "quoted": lambda piece: f"'{piece}'",
    "in an address": lambda piece: f"https://judge.example/?key={piece}&again={piece}",
    "in a header": lambda piece: f"Authorization:Bearer {piece}",
}


def shown_of(text: str) -> set[str]:
    """What eight characters of the key stand in a text."""
    return {KEY[i : i + 8] for i in range(len(KEY) - 7) if KEY[i : i + 8] in text}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelStandIn]:
    """A server, and the key for it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stand_in = ModelStandIn()
    yield stand_in
    stand_in.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece", PIECES)
def test_a_server_that_echoes_the_key(server: ModelStandIn, form: str, piece: str) -> None:
    """In a refusal, in a body that is no answer, and in a reply."""
    echo = FORMS[form](PIECES[piece])
    endpoint = Endpoint("tiny", server.address, max_retries=0)
    for rule in (
        failed(400, f"You sent {echo}, which is wrong"),
        (401, {}, f"You sent {echo} to us".encode()),
        (200, {}, f"You sent {echo} to us".encode()),
    ):
        server.rule = lambda _, rule=rule: rule
        with pytest.raises(EndpointError) as caught:
            endpoint("Who?")
        assert not shown_of(str(caught.value)), str(caught.value)
    server.rule = lambda _: ok(f"You sent {echo} to me, [[A]].")
    reply = endpoint("Who?")
    assert not shown_of(reply), reply
    assert reply.startswith("You sent ")
    assert reply.endswith("to me, [[A]].")


def test_what_is_no_piece_of_the_key_stays() -> None:
    """A redaction that ate everything would hide nothing well."""
    text = json.dumps({"winner": "A", "reason": "50% of <b>these</b> & % 1+1=2 sk- Zq7xK"})
    assert _hide(text, KEY) == text
    assert _hide(text, None) == text


ASK = """
import logging, os, sys
if os.environ.pop("ALL_LOGS", None):
    logging.basicConfig(level=logging.DEBUG)
from course_utils.errors import EndpointError
from course_utils.scoring import Endpoint
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


@pytest.mark.parametrize("logs", [{"OPENAI_LOG": "debug"}, {"OPENAI_LOG": "info", "ALL_LOGS": "1"}])
@pytest.mark.parametrize("status", [200, 401, 500])
def test_no_log_shows_the_key(server: ModelStandIn, status: int, logs: dict[str, str]) -> None:
    """With everything logged, what is sent stays hidden."""
    server.rule = lambda _: failed(status, "Oh no.", Retry_After="0.01")
    told = asked_in_a_process(server.address, **logs)
    assert "refused" in told
    assert not shown_of(told), told
