"""Any model behind an OpenAI-compatible server, asked like a `Runner`.

Introduced in notebook 08. Servers of this kind are llama.cpp's, Ollama, vLLM and most hosted ones.
"""

from __future__ import annotations

import base64
import contextlib
import html
import ipaddress
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
from openai._types import Omit  # older versions don't have it at the top

from course_utils._core import checks
from course_utils.errors import EndpointError

MODEL_VARIABLE, ADDRESS_VARIABLE = "JUDGE_MODEL", "JUDGE_BASE_URL"
_ADDRESS = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/[\w./~-]*)?")
_HIDDEN = "…"
_SHOWN = 300
# A piece of a key with so many characters gives it away.
_PIECE = 8
# What servers without keys tell people to set. These are no secrets, and may be words of a reply.
_NO_SECRETS = (
    *("sk-no-key-required", "no-key-required", "not-needed", "not-required", "lm-studio"),
    *("token-abc123", "placeholder", "your-api-key", "your_api_key", "no-api-key"),
)
# One character written as several: for JSON, Python, URLs, HTML.
_ESCAPE = re.compile(
    r"\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\[!-/:-@\[-`{-~]|%[0-9a-f]{2}|&#[0-9]{1,7};|&#x[0-9a-f]{1,6};"
    r"|&[a-z]{2,8};",
    re.I,
)
_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
_MOST_SECONDS = 24 * 3600


def _unescape(match: re.Match) -> str:
    written = match[0]
    if written[0] == "&":
        return html.unescape(written)[:1]
    if written[0] == "%" or written[1] in "uxUX":
        return chr(int(written.lstrip("%\\uxUX"), 16))
    return written[1]


def _pieces(key: str) -> frozenset[str]:
    """All pieces of a key, in each form in which it may come back, in small letters."""
    forms = []
    for way in (key, key[::-1]):
        data = way.encode()
        forms += [way, data.hex(), data.hex(":"), data.hex("-")]
        for before in range(3):  # base64 takes three bytes at a time, and the key begins anywhere
            coded = base64.b64encode(bytes(before) + data).decode().rstrip("=")
            coded = coded[(0, 2, 3)[before] :]  # the others depend on what stands before
            forms += [coded, coded.replace("+", "-").replace("/", "_"), coded[::-1]]
    return frozenset(
        form[start : start + _PIECE].lower()
        for form in forms
        for start in range(len(form) - _PIECE + 1)
    )


def _redact(text: str, key: str | None) -> str:
    """A text without the key, and without any piece of it of eight characters or more.

    Also found are pieces written backwards, in capitals, in base64 or hexadecimal, escaped for
    JSON, HTML or a URL (or for two of them), and with white space or anything that is not ASCII
    between their characters. Takes time in proportion to the text's length.
    """
    if not key:
        return text
    if len(key) < _PIECE:
        return text.replace(key, _HIDDEN)
    pieces = _pieces(key)
    hidden: list[tuple[int, int]] = []
    # The text as it is looked at, and where in the real one each character begins and ends.
    layer, begins, ends = text, list(range(len(text))), list(range(1, len(text) + 1))
    for _ in range(3):
        kept = [place for place, character in enumerate(layer) if "!" <= character <= "~"]
        seen = "".join([layer[place] for place in kept]).lower()
        for start in range(len(seen) - _PIECE + 1):
            if seen[start : start + _PIECE] in pieces:
                hidden.append((begins[kept[start]], ends[kept[start + _PIECE - 1]]))
        parts: list[str] = []
        next_begins: list[int] = []
        next_ends: list[int] = []
        place = 0
        for match in _ESCAPE.finditer(layer):
            start, end = match.span()
            parts += [layer[place:start], _unescape(match)]
            next_begins += [*begins[place:start], begins[start]]
            next_ends += [*ends[place:start], ends[end - 1]]
            place = end
        if not parts:
            break
        layer = "".join([*parts, layer[place:]])
        begins, ends = [*next_begins, *begins[place:]], [*next_ends, *ends[place:]]
    told: list[str] = []
    place = 0
    for start, end in sorted(hidden):
        if start > place or not told:
            told += [text[place:start], _HIDDEN]
        place = max(place, end)
    return "".join([*told, text[place:]])


def _hide(text: object, key: str | None) -> str:
    """A server's text in one line, cut, without the key in any form in which it may come back."""
    # Of a long text only what could be shown is looked at, and a good piece behind it.
    told = _redact(str(text)[: 20 * _SHOWN], key)
    # Half-masked keys, as OpenAI shows them.
    told = re.sub(r"[^\s*]{0,200}\*{3,}\S{0,200}", _HIDDEN, told)
    told = " ".join("".join(c if c.isprintable() else " " for c in told).split())
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"


class _WithoutKey(logging.Filter):
    """Takes the key out of what the libraries log."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            told = record.getMessage()
        except Exception:  # a library's slip, which logging would report with all arguments
            told = str(record.msg)
        record.msg, record.args = _redact(told, self.key), None
        record.exc_info = record.exc_text = record.stack_info = None
        return True


@contextlib.contextmanager
def _quiet_about(key: str | None) -> Iterator[None]:
    """While the libraries work, nothing that they log shows the key, whatever the level."""
    if key is None:
        yield
        return
    without = _WithoutKey(key)
    # A filter holds for the logger that it is at, not for those below.
    names = [
        *_LOGGERS,
        *(name for name in list(logging.root.manager.loggerDict) if name.split(".")[0] in _LOGGERS),
    ]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(without)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(without)


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


class _Trouble(Exception):
    """An answer that is none; the text says why."""


class Endpoint:
    """A model behind an OpenAI-compatible server. Called with prompts, it gives replies.

    The key is read from the environment with each call and kept nowhere: no error and no pickle of
    this class holds it, and no reply, and while a server is asked the log does not show it. A local
    server needs none. Prompts are sent one by one; redirects are not followed, and for a local
    server no proxy is used. Introduced in notebook 08.

    Args:
        model: the model's name on the server; by default the variable JUDGE_MODEL.
        base_url: the server's address, often ending in /v1; by default the variable JUDGE_BASE_URL.
        timeout: how many seconds to wait for the connection, and then for each part of an answer.
        max_retries: how often a request is sent again after no connection, a timeout, "too many
            requests" or a fault of the server. Where the server asks for a wait of up to two
            minutes, the library waits so long; where it asks for more, it gives up at once.
        key_variable: the environment variable that holds the key.
        allow_plain_http: send the key through an http:// address that is not this machine's.
        longest: how many seconds one prompt may take in all, with retries and waits, however slowly
            the server answers; by default `timeout` for each try, and a minute.

    Raises:
        EndpointError: no model or no address, or an address that can't be one.
        BadValue: an argument that is not possible; the times are seconds, up to a day.
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        timeout: float = 30,
        max_retries: int = 2,
        key_variable: str = "OPENAI_API_KEY",
        *,
        allow_plain_http: bool = False,
        longest: float | None = None,
    ):
        for name, given in (("model", model), ("base_url", base_url)):
            if given is not None:
                checks.text(name, given)
        if not re.fullmatch(r"\w+", checks.text("key_variable", key_variable)):
            raise checks.refuse("key_variable", key_variable, "the name of an environment variable")
        model = model or os.environ.get(MODEL_VARIABLE, "").strip()
        base_url = base_url or os.environ.get(ADDRESS_VARIABLE, "").strip()
        if not model or not base_url:
            missing = [
                f"{what} (the variable {variable}, or {name}=)"
                for what, variable, name, value in (
                    ("the model's name", MODEL_VARIABLE, "model", model),
                    ("the server's address", ADDRESS_VARIABLE, "base_url", base_url),
                )
                if not value
            ]
            raise EndpointError(
                f"No endpoint is set up: {' and '.join(missing)} is missing. An address is, for "
                "example, http://localhost:8080/v1 for a server on this machine."
            )
        if not _ADDRESS.fullmatch(base_url):
            # It is not shown: it may hold a password.
            raise EndpointError(
                "The server's address (base_url) is no plain http:// or https:// address. It has "
                "the form https://host:port/path, without a user name, a password or a query; a "
                f"key belongs into the environment variable {key_variable}."
            )
        checks.number("timeout", timeout, above=0, most=_MOST_SECONDS)
        checks.whole("max_retries", max_retries, least=0, most=100)
        checks.flag("allow_plain_http", allow_plain_http)
        if longest is None:
            longest = timeout * (max_retries + 1) + 60
        else:
            checks.number("longest", longest, above=0, most=_MOST_SECONDS)
        self.model = model
        self.base_url = base_url
        self.timeout = timeout
        self.max_retries = max_retries
        self.key_variable = key_variable
        self.allow_plain_http = allow_plain_http
        self.longest = longest

    @staticmethod
    def configured() -> bool:
        """Whether the environment names a model and an address."""
        return all(os.environ.get(name, "").strip() for name in (MODEL_VARIABLE, ADDRESS_VARIABLE))

    def __repr__(self) -> str:
        return f"Endpoint({self.model!r}, {self.base_url!r})"

    def __call__(
        self,
        prompts: str | list[str],
        *,
        system: str | None = None,
        temperature: float | None = 0,
        max_new_tokens: int = 512,
        seed: int | None = None,
    ) -> str | list[str]:
        """Ask: one prompt gives one reply, a list gives a list.

        Args:
            prompts: a question, or a list of them.
            system: a system prompt.
            temperature: 0 for the likeliest words; None leaves it to the server.
            max_new_tokens: where a reply is cut.
            seed: for sampling, where the server knows seeds.

        Raises:
            EndpointError: the server cannot be reached, refuses, gives no answer, or takes longer
                than `longest`; or the key would be sent in clear.
            BadValue: an empty prompt, or an argument that is not possible.
        """
        many = [prompts] if isinstance(prompts, str) else checks.texts("prompts", prompts)
        if system is not None:
            checks.text("system", system)
        if temperature is not None:
            checks.number("temperature", temperature, least=0)
        checks.whole("max_new_tokens", max_new_tokens, least=1, most=10**7)
        if seed is not None:
            checks.whole("seed", seed, least=-(2**63), most=2**63 - 1)
        for place, text in enumerate(many):
            checks.text(f"prompt {place}", text)
        if empty := [index for index, text in enumerate(many) if not text]:
            raise ValueError(f"An empty prompt gives a model nothing to go on (prompt {empty[0]}).")
        options: dict[str, Any] = {"temperature": temperature, "seed": seed}
        options = {name: value for name, value in options.items() if value is not None}
        # In a thread of its own: so no traceback here can show the key; and a server that sends a
        # byte a second, against which no timeout of the library helps, can be left alone.
        told: queue.SimpleQueue[tuple[str | None, str]] = queue.SimpleQueue()
        closers: list[Callable[[], None]] = []
        over = threading.Event()
        asking = (many, system, max_new_tokens, options, told, closers, over)
        threading.Thread(target=self._ask, args=asking, daemon=True).start()
        replies: list[str] = []
        trouble = ""
        try:
            while not trouble and len(replies) < len(many):
                reply, trouble = told.get(timeout=self.longest)
                if reply is not None:
                    replies.append(reply)
        except queue.Empty:
            trouble = (
                f"{self.model} at {self.base_url} took longer than {self.longest:g} s for one "
                "prompt, retries and waits included. Is the server overloaded? A larger longest= "
                "waits longer."
            )
        finally:
            over.set()
            for close in closers:
                close()
        if trouble:
            raise EndpointError(trouble) from None
        return replies[0] if isinstance(prompts, str) else replies

    def _ask(
        self,
        prompts: list[str],
        system: str | None,
        limit: int,
        options: dict[str, Any],
        told: queue.SimpleQueue[tuple[str | None, str]],
        closers: list[Callable[[], None]],
        over: threading.Event,
    ) -> None:
        """Tell the replies one by one, or what went wrong. Raises nothing, as it has the key."""
        key = os.environ.get(self.key_variable, "").strip() or None
        trouble = self._unsafe(key) or ""
        try:
            if not trouble:
                with self._client(key) as client, _quiet_about(key):
                    closers.append(client.close)
                    if over.is_set():
                        return
                    try:
                        for reply in self._replies(client, prompts, system, limit, options, key):
                            told.put((reply, ""))
                    except openai.OpenAIError as error:
                        trouble = self._explain(error, key, client)
        except _Trouble as found:
            trouble = str(found)
        except Exception as error:
            who, what = f"{self.model} at {self.base_url}", type(error).__name__
            trouble = f"{who} cannot be asked ({what}: {_hide(error, key)})."
        if trouble:
            secret = key if key and len(key) >= _PIECE else None
            told.put((None, _redact(trouble, secret)))

    def _replies(
        self,
        client: openai.OpenAI,
        prompts: list[str],
        system: str | None,
        limit: int,
        options: dict[str, Any],
        key: str | None,
    ) -> Iterator[str]:
        create = client.chat.completions.with_raw_response.create
        limit_name = "max_tokens"
        # A key too short to be a secret may be a word of the reply.
        secret = key if key and len(key) >= _PIECE and key.lower() not in _NO_SECRETS else None
        for prompt in prompts:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": prompt})
            asked = {"model": self.model, "messages": messages, **options}
            try:
                answer = create(**asked, **{limit_name: limit}, **self._headers(key))
            except openai.BadRequestError as error:
                if "max_completion_tokens" not in str(error.body):
                    raise
                limit_name = "max_completion_tokens"  # newer models of OpenAI insist on it
                answer = create(**asked, **{limit_name: limit}, **self._headers(key))
            yield _redact(self._read(answer.content, limit, key), secret)

    def _unsafe(self, key: str | None) -> str | None:
        if key is None:
            return None
        if not re.fullmatch(r"[!-~]+", key):
            return (
                f"What {self.key_variable} holds is no key: it has spaces, line breaks or other "
                "characters that no key has."
            )
        parts = urlsplit(self.base_url)
        away = not _is_local(parts.hostname or "")
        if parts.scheme == "http" and away and not self.allow_plain_http:
            return (
                f"{self.base_url} is not encrypted, and {self.key_variable} would travel in clear. "
                "Use an https:// address; or, in a network that you trust, allow_plain_http=True; "
                f"or unset {self.key_variable} where the server needs no key."
            )
        return None

    @staticmethod
    def _headers(key: str | None) -> dict[str, Any]:
        """What the library would add of its own: an organization's name, or a key for another."""
        left_out = ["OpenAI-Organization", "OpenAI-Project"]
        left_out += [] if key else ["Authorization"]
        return {"extra_headers": {name: Omit() for name in left_out}}

    def _client(self, key: str | None) -> openai.OpenAI:
        local = _is_local(urlsplit(self.base_url).hostname or "")
        return openai.OpenAI(
            api_key=key or "none",
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.max_retries,
            http_client=openai.DefaultHttpxClient(
                timeout=self.timeout, follow_redirects=False, trust_env=not local
            ),
        )

    def _read(self, body: bytes, limit: int, key: str | None) -> str:
        """The reply in a server's answer; raises what is wrong with it."""
        who = f"{self.model} at {self.base_url}"
        text = body.decode("utf-8", errors="replace")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            if text.lstrip("\ufeff \t\r\n").startswith("<"):
                raise _Trouble(
                    f"{self.base_url} answered with a web page instead of JSON. Is this the "
                    "address of the API? It often ends in /v1."
                ) from None
            begun = text.lstrip().startswith("{") and not text.rstrip().endswith("}")
            cut = ", as it ends too early" if begun else ""
            raise _Trouble(
                f"{who} answered with something that is no JSON{cut}: {_hide(text, key)!r}"
            ) from None
        try:
            choice = data["choices"][0]
            content = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise _Trouble(f"{who} answered without choices: {_hide(text, key)}") from None
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if isinstance(content, str) and content.strip():
            # JSON may hold halves of characters, which no file could take.
            return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if choice.get("finish_reason") == "length":
            raise _Trouble(
                f"{who} gave an empty reply: it used up max_new_tokens={limit} before it wrote "
                "one, as models do that think first. Allow more."
            )
        raise _Trouble(f"{who} gave an empty reply: {_hide(text, key)}")

    def _explain(self, error: Exception, key: str | None, client: openai.OpenAI) -> str:
        """What went wrong and what to do, from an error that may hold the key."""
        who = f"{self.model} at {self.base_url}"
        if isinstance(error, openai.APITimeoutError):
            return (
                f"{who} did not answer within {self.timeout:g} s, asked {self.max_retries + 1} "
                "times. Is the server busy loading the model? A larger timeout= waits longer."
            )
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            said = _hide(cause, key)
            if "complete message body" in said or "incomplete chunked read" in said:
                return f"{who} broke off in the middle of its answer ({said}). Try again."
            if "decod" in type(cause).__name__.lower():
                return f"{who} sent an answer that cannot be unpacked ({said})."
            return (
                f"{self.base_url} cannot be reached ({said}). Is the server running, and are host "
                "and port right?"
            )
        if not isinstance(error, openai.APIStatusError):
            return f"{who} gave an answer that cannot be read ({type(error).__name__})."
        status = error.status_code
        body = error.body
        body = body.get("error", body) if isinstance(body, dict) else body
        body = body.get("message", body) if isinstance(body, dict) else body
        said = _hide(body or "", key)
        said = f' It says: "{said}"' if said and not said.startswith("<") else ""
        headers = error.response.headers
        if 300 <= status < 400:
            there = _hide(headers.get("location", "somewhere else"), key)
            return f"{self.base_url} points to {there}; if that is right, make it the address."
        if status == 401:
            told = "was refused" if key else "is not set, and the server wants a key"
            return (
                f"{who} answered 401: the key in {self.key_variable} {told}. Set that variable to "
                f"a key that is valid there; keys expire, too.{said}"
            )
        if status == 403:
            told = "may not use this model" if key else "is not set, and the server wants a key"
            return (
                f"{who} answered 403: the key in {self.key_variable} {told}. Use a key that may, "
                f"ask for access there, or choose another model.{said}"
            )
        if status == 404:
            return f"{who} was not found (404).{self._models(client, key)}{said}"
        if status == 429:
            wait = _hide(headers.get("retry-after", ""), key)
            wait = f" It asks to wait for: {wait} (seconds, or until)." if wait else ""
            return (
                f"{who} answered 429, too many requests, each of {self.max_retries + 1} times at "
                f"most. Wait, ask for less, or look at your quota there.{wait}{said}"
            )
        if status == 503:
            return (
                f"{who} answered 503: it is overloaded, or still loading the model, after "
                f"{self.max_retries} retries. Try again in a minute.{said}"
            )
        if status >= 500:
            return (
                f"{who} answered {status}, a fault on its side, after {self.max_retries} retries. "
                f"Look at the server's log, or try later.{said}"
            )
        return f"{who} answered {status}: it does not take the request.{said}"

    def _models(self, client: openai.OpenAI, key: str | None) -> str:
        """What the server has, as far as it tells."""
        try:
            answer = client.models.with_raw_response.list(**self._headers(key))
            names = [entry["id"] for entry in json.loads(answer.content)["data"]]
        except Exception:  # whatever it is, it was only to help
            return " It lists no models either; does the address lack /v1 at its end?"
        told = ", ".join(str(name) for name in names[:20])
        return f" The server has: {_hide(told, key)}." if told else " The server has no models."
