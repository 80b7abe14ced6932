"""Any model behind an OpenAI-compatible server, asked like a `Runner`.

Introduced in notebook 08. Servers of this kind are llama.cpp's, Ollama, vLLM and most hosted ones.
"""

from __future__ import annotations

import html
import ipaddress
import json
import math
import os
import re
from typing import Any
from urllib.parse import quote, urlsplit

import openai
from openai._types import Omit  # older versions don't have it at the top

from course_utils.errors import EndpointError

MODEL_VARIABLE, ADDRESS_VARIABLE = "JUDGE_MODEL", "JUDGE_BASE_URL"
_ADDRESS = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/[\w./~-]*)?")
_HIDDEN = "…"
_SHOWN = 300


def _hide(text: object, key: str | None) -> str:
    """A server's text in one line, cut, without the key in any form in which it may come back."""
    told = str(text)
    if key:
        for form in (key, quote(key, safe=""), json.dumps(key)[1:-1], html.escape(key)):
            told = told.replace(form, _HIDDEN)
        # The beginning of a key, as where a server cuts it, is a part of the secret too.
        for length in range(len(key) - 1, 7, -1):
            told = told.replace(key[:length], _HIDDEN)
    # Half-masked keys, as OpenAI shows them; of a long text only what could be shown is searched.
    told = re.sub(r"[^\s*]{0,200}\*{3,}\S{0,200}", _HIDDEN, told[:4000])
    told = " ".join("".join(c if c.isprintable() else " " for c in told).split())
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


class Endpoint:
    """A model behind an OpenAI-compatible server. Called with prompts, it gives replies.

    The key is read from the environment with each call and kept nowhere: no error and no pickle of
    this class holds it, and no reply. A local server needs none. Prompts are sent one by one;
    redirects are not followed, and for a local server no proxy is used. Introduced in notebook 08.

    Args:
        model: the model's name on the server; by default the variable JUDGE_MODEL.
        base_url: the server's address, often ending in /v1; by default the variable JUDGE_BASE_URL.
        timeout: how many seconds to wait for the connection, and then for each part of an answer.
        max_retries: how often a request is sent again after no connection, a timeout, "too many
            requests" or a fault of the server. The library waits as long as the server asks for.
        key_variable: the environment variable that holds the key.
        allow_plain_http: send the key through an http:// address that is not this machine's.

    Raises:
        EndpointError: no model or no address, or an address that can't be one.
        ValueError: a timeout or a number of retries that is not possible.
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
    ):
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
                "The server's address is no plain http:// or https:// address. It has the form "
                "https://host:port/path, without a user name, a password or a query; a key belongs "
                f"into the environment variable {key_variable}."
            )
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout is {timeout}; a number of seconds above 0 is possible.")
        if not isinstance(max_retries, int) or max_retries < 0:
            raise ValueError(f"max_retries is {max_retries}; 0 or more are possible.")
        self.model = model
        self.base_url = base_url
        self.timeout = timeout
        self.max_retries = max_retries
        self.key_variable = key_variable
        self.allow_plain_http = allow_plain_http

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
            system: a system message.
            temperature: 0 for the likeliest words; None leaves it to the server.
            max_new_tokens: where a reply is cut.
            seed: for sampling, where the server knows seeds.

        Raises:
            EndpointError: the server cannot be reached, refuses, or gives no answer; or the key
                would be sent in clear.
            ValueError: an empty prompt.
        """
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        if empty := [index for index, text in enumerate(many) if not text]:
            raise ValueError(f"An empty prompt gives a model nothing to go on (prompt {empty[0]}).")
        options: dict[str, Any] = {"temperature": temperature, "seed": seed}
        options = {name: value for name, value in options.items() if value is not None}
        replies, trouble = self._ask(many, system, max_new_tokens, options)
        # Here no frame and no other exception holds the key, so no traceback can show it.
        if trouble is not None:
            raise EndpointError(trouble)
        return replies[0] if isinstance(prompts, str) else replies

    def _ask(
        self, prompts: list[str], system: str | None, limit: int, options: dict[str, Any]
    ) -> tuple[list[str], str | None]:
        """The replies, or what went wrong; raises nothing, as its frame holds the key."""
        key = os.environ.get(self.key_variable, "").strip() or None
        if trouble := self._unsafe(key):
            return [], trouble
        replies: list[str] = []
        limit_name = "max_tokens"
        try:
            with self._client(key) as client:
                create = client.chat.completions.with_raw_response.create
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
                    content, trouble = self._read(answer.content, limit, key)
                    if content is None:
                        return [], trouble
                    # A key too short to be a secret may be a word of the reply.
                    secret = key is not None and len(key) >= 8
                    replies.append(content.replace(key, _HIDDEN) if secret else content)
        except Exception as error:
            failure = error
        else:
            return replies, None
        # Not where it is handled: what the library logs of a further request would tell of it.
        return [], self._explain(failure, key)

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

    def _read(self, body: bytes, limit: int, key: str | None) -> tuple[str | None, str]:
        """The reply in a server's answer, or None and what is wrong with it."""
        who = f"{self.model} at {self.base_url}"
        text = body.decode("utf-8", errors="replace")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            if re.match(r"\s*<", text):
                return None, (
                    f"{self.base_url} answered with a web page instead of JSON. Is this the "
                    "address of the API? It often ends in /v1."
                )
            return None, f"{who} answered with something that is no JSON: {_hide(text, key)!r}"
        try:
            choice = data["choices"][0]
            content = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return None, f"{who} answered without choices: {_hide(text, key)}"
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if isinstance(content, str) and content.strip():
            return content, ""
        if choice.get("finish_reason") == "length":
            return None, (
                f"{who} gave an empty reply: it used up max_new_tokens={limit} before it wrote "
                "one, as models do that think first. Allow more."
            )
        return None, f"{who} gave an empty reply: {_hide(text, key)}"

    def _explain(self, error: Exception, key: str | None) -> str:
        """What went wrong and what to do, from an error that may hold the key."""
        who = f"{self.model} at {self.base_url}"
        if isinstance(error, openai.APITimeoutError):
            return (
                f"{who} did not answer within {self.timeout:g} s, asked {self.max_retries + 1} "
                "times. Is the server busy loading the model? A larger timeout= waits longer."
            )
        if isinstance(error, openai.APIConnectionError):
            return (
                f"{self.base_url} cannot be reached ({_hide(error.__cause__ or error, key)}). Is "
                "the server running, and are host and port right?"
            )
        if not isinstance(error, openai.APIStatusError):
            return f"{who} gave an answer that cannot be read ({type(error).__name__})."
        status = error.status_code
        body = error.body
        body = body.get("error", body) if isinstance(body, dict) else body
        body = body.get("message", body) if isinstance(body, dict) else body
        said = _hide(body or "", key)
        said = f' It says: "{said}"' if said and not said.startswith("<") else ""
        if 300 <= status < 400:
            there = _hide(error.response.headers.get("location", "somewhere else"), key)
            return f"{self.base_url} points to {there}; if that is right, make it the address."
        if status in (401, 403):
            told = "was refused" if key else "is not set, and the server wants a key"
            return (
                f"{who} answered {status}: the key in {self.key_variable} {told}. Set that "
                f"variable to a key that may use this model.{said}"
            )
        if status == 404:
            return f"{who} was not found (404).{self._models(key)}{said}"
        if status == 429:
            wait = _hide(error.response.headers.get("retry-after", ""), key)
            wait = f" It asks to wait for: {wait} (seconds, or until)." if wait else ""
            return (
                f"{who} answered 429, too many requests, each of {self.max_retries + 1} times at "
                f"most. Wait, ask for less, or look at your quota there.{wait}{said}"
            )
        if status >= 500:
            return (
                f"{who} answered {status}, a fault on its side, after {self.max_retries} retries. "
                f"Look at the server's log, or try later.{said}"
            )
        return f"{who} answered {status}: it does not take the request.{said}"

    def _models(self, key: str | None) -> str:
        """What the server has, as far as it tells."""
        try:
            with self._client(key) as client:
                answer = client.models.with_raw_response.list(**self._headers(key))
                names = [entry["id"] for entry in json.loads(answer.content)["data"]]
        except Exception:  # whatever it is, it was only to help
            return " It lists no models either; does the address lack /v1 at its end?"
        told = ", ".join(str(name) for name in names[:20])
        return f" The server has: {_hide(told, key)}." if told else " The server has no models."
