"""A model behind an OpenAI-compatible address; and replies that stream."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np

from course_utils._core import checks
from course_utils.errors import BadValue, CourseError, shown
from course_utils.handoff._deployment import LISTED, Answer, Messages, Position

_SECONDS = 120.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Server:
    """A server with OpenAI's `chat.completions`: llama.cpp's, vLLM's, `transformers serve`.

    llama.cpp's also tells the tokens of a prompt and the probabilities of a reply, so more can be
    compared. vLLM tells the tokens.

    Args:
        url: where it answers, as http://127.0.0.1:8080. A final /v1 may be left out.
        name: what tables call it.
        model: the model's name there, if it serves several.
        adapters: of llama.cpp's adapters, the strength of each by its number; by default, as the
            server was started.
        key_variable: the environment variable that holds the key, if one is needed. It is neither
            printed nor saved.

    Raises:
        BadValue: not such an address, or a key for one that is not encrypted.
        CourseError: nobody answers there.
    """

    def __init__(
        self,
        url: str,
        name: str = "server",
        *,
        model: str | None = None,
        adapters: dict[int, float] | None = None,
        key_variable: str | None = None,
    ) -> None:
        self.url = checks.text("url", url, empty=False).rstrip("/").removesuffix("/v1")
        self.name = checks.text("name", name, empty=False)
        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL:
            address = httpx.URL("")
        if address.scheme not in ("http", "https") or not address.host:
            raise checks.refuse("url", url, "an address such as http://127.0.0.1:8080")
        if address.userinfo:
            raise BadValue("url holds a name or a password. Put the key into key_variable's.")
        if model is not None:
            checks.text("model", model, empty=False)
        if key_variable is not None:
            checks.text("key_variable", key_variable, empty=False)
        self.adapters = _strengths(adapters)
        key = os.environ.get(key_variable, "").strip() if key_variable else ""
        if key_variable and not key:
            raise BadValue(f"The environment variable {key_variable} is not set.")
        if not (key.isascii() and key.isprintable()):
            raise BadValue(f"What {key_variable} holds is no key: not all of it is plain ASCII.")
        if key and address.scheme == "http" and address.host not in _LOOPBACK:
            raise BadValue(
                f"A key would go to {address.host} unencrypted. Use https, or leave "
                "key_variable out."
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=_SECONDS,
            # A proxy has no business between this machine and itself.
            trust_env=address.host not in _LOOPBACK,
        )
        data = (self._get("/v1/models") or {}).get("data")
        listed = [e for e in data if isinstance(e, dict)] if isinstance(data, list) else []
        entry = next((e for e in listed if e.get("id") == model), listed[0] if listed else {})
        meta = entry.get("meta")
        self._meta: dict[str, Any] = meta if isinstance(meta, dict) else {}
        self.model = model or str(entry.get("id") or "model")
        props = self._get("/props") or {}
        self._ftype = props.get("model_ftype")
        self._is_llama_cpp = "chat_template" in props and "total_slots" in props

    @property
    def precision(self) -> str:
        """What the file's weights are mostly stored in; "unknown" where the server does not say."""
        return str(self._ftype or self._meta.get("ftype") or "unknown")

    @property
    def vocabulary(self) -> int | None:
        """The number of tokens, where the server says it."""
        told = self._meta.get("n_vocab")
        return told if isinstance(told, int) else None

    def _get(self, path: str) -> dict[str, Any] | None:
        try:
            answer = self._client.get(path)
        except httpx.HTTPError as error:
            raise self._lost(error) from None
        try:
            found = answer.json() if answer.is_success else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.adapters is not None:
            body = body | {"lora": [{"id": i, "scale": s} for i, s in self.adapters.items()]}
        try:
            answer = self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise self._lost(error) from None
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not answer.is_success or not isinstance(found, dict):
            told = found.get("error", found) if isinstance(found, dict) else answer.text
            said = told.get("message", told) if isinstance(told, dict) else told
            raise CourseError(
                f"{self.name} at {self.url}{path} answered with status {answer.status_code}: "
                f"{self._shown(said)}"
            )
        return found

    def _shown(self, told: Any) -> str:
        """What a server told, without the key: some repeat it."""
        key = self._client.headers.get("Authorization", "").removeprefix("Bearer ")
        if key and key in (said := told if isinstance(told, str) else repr(told)):
            told = said.replace(key, "…")
        return shown(told)

    @contextlib.contextmanager
    def _reading(self, answer: dict[str, Any], like: str) -> Iterator[None]:
        """Say what came where an answer has another form."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise CourseError(
                f"{self.name} at {self.url} did not answer as {like} do: {self._shown(answer)}"
            ) from None

    def _lost(self, error: httpx.HTTPError) -> CourseError:
        kind = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "is gone"
        return CourseError(
            f"{self.name} at {self.url} {kind} ({type(error).__name__}). Is it running, and is the "
            "port right? If it ended while it answered, its own log says why; nothing was kept of "
            "the half reply, so ask again."
        )

    def prompt_ids(self, messages: Messages) -> list[int] | None:
        """The tokens of a conversation, as the server makes them."""
        if self._is_llama_cpp:
            found = self._post("/apply-template", {"messages": list(messages)})
            with self._reading(found, "llama.cpp's servers"):
                body = {"content": found["prompt"], "add_special": True, "parse_special": True}
            found = self._post("/tokenize", body)
            with self._reading(found, "llama.cpp's servers"):
                return [int(token) for token in found["tokens"]]
        try:
            found = self._post("/tokenize", {"model": self.model, "messages": list(messages)})
        except CourseError:
            return None
        tokens = found.get("tokens")
        is_told = isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
        return tokens if is_told else None

    def replies(self, prompts: Sequence[Messages], max_tokens: int) -> list[Answer]:
        """Greedy replies, one after the other."""
        found = []
        for messages in prompts:
            body = {
                "model": self.model,
                "messages": list(messages),
                "max_tokens": max_tokens,
                "temperature": 0,
            }
            if self._is_llama_cpp:
                body["cache_prompt"] = False
            answer = self._post("/v1/chat/completions", body)
            with self._reading(answer, "OpenAI's chat.completions"):
                choice = answer["choices"][0]
                text = checks.text("content", choice["message"]["content"] or "")
                used = (answer.get("usage") or {}).get("prompt_tokens")
                found.append(
                    Answer(
                        text,
                        choice["finish_reason"] == "stop",
                        used if isinstance(used, int) else None,
                    )
                )
        return found

    def positions(self, prompt: list[int], reply: list[int]) -> list[Position] | None:
        """The probabilities before each token of the reply: a request for each."""
        if not self._is_llama_cpp:
            return None
        found = []
        for done in range(len(reply)):
            body = {
                "prompt": prompt + reply[:done],
                "n_predict": 1,
                "temperature": 0,
                "n_probs": LISTED,
                # What another adapter has read must not be gone on from.
                "cache_prompt": done > 0,
            }
            answer = self._post("/completion", body)
            with self._reading(answer, "llama.cpp's servers"):
                listed = answer["completion_probabilities"][0]["top_logprobs"]
                found.append(
                    Position(
                        np.asarray([entry["id"] for entry in listed], dtype=np.int64),
                        np.asarray([entry["logprob"] for entry in listed], dtype=np.float64),
                    )
                )
        return found


def _strengths(adapters: dict[int, float] | None) -> dict[int, float] | None:
    if adapters is None:
        return None
    kind = "adapters' numbers with their strengths, such as {0: 1.0}"
    if not isinstance(adapters, dict):
        raise checks.refuse("adapters", adapters, kind)
    for number, strength in adapters.items():
        try:
            checks.whole("adapters", number, least=0)
            checks.number("adapters", strength)
        except BadValue:
            raise checks.refuse("adapters", adapters, kind) from None
    return adapters


def stream(client: Any, *, retries: int = 1, **request: Any) -> Iterator[str]:
    """Yield a chat reply piece by piece; begin again if the connection breaks, and double nothing.

    After a break the request is sent again, and what was yielded before is not yielded again. The
    new reply has to begin with it, so ask greedily (`temperature=0`) or with a seed.

    Args:
        client: an `openai.OpenAI`.
        retries: how often to begin again.
        **request: what `client.chat.completions.create` takes.

    Raises:
        BadValue: no client, or `retries` is not a whole number from 0 to 100.
        CourseError: the connection broke too often, or the new reply is another one.
    """
    if not hasattr(getattr(client, "chat", None), "completions"):
        raise checks.refuse("client", client, "an openai.OpenAI")
    checks.whole("retries", retries, least=0, most=100)
    return _pieces(client, retries, request)


def _pieces(client: Any, retries: int, request: dict[str, Any]) -> Iterator[str]:
    from openai import APIConnectionError

    given = ""
    for _ in range(retries + 1):
        again, ended, why = "", False, "without a finish_reason"
        try:
            for chunk in client.chat.completions.create(stream=True, **request):
                if not chunk.choices:
                    continue
                again += chunk.choices[0].delta.content or ""
                ended = ended or chunk.choices[0].finish_reason is not None
                if not (again.startswith(given) or given.startswith(again)):
                    break
                if len(again) > len(given):
                    yield again[len(given) :]
                    given = again
        except (APIConnectionError, httpx.TransportError, json.JSONDecodeError) as error:
            why = type(error).__name__
        if not given.startswith(again) or (ended and again != given):
            raise CourseError(
                f"The connection broke after {shown(given)}, and the reply to the same request now "
                "begins differently. Ask with temperature=0, or take the new reply whole."
            )
        if ended:
            return
    raise CourseError(
        f"The server ended the connection {retries + 1} times ({why}); the reply so far was "
        f"{shown(given)}."
    )
