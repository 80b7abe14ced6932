"""A model behind an OpenAI-compatible address; and replies that stream."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np

from course_utils._core import checks
from course_utils.errors import BadValue, CourseError, shown
from course_utils.handoff._deployment import LISTED, Answer, Messages, Position

_SECONDS = 120.0


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
        if model is not None:
            checks.text("model", model, empty=False)
        if key_variable is not None:
            checks.text("key_variable", key_variable, empty=False)
        self.adapters = _strengths(adapters)
        key = os.environ.get(key_variable) if key_variable else None
        if key_variable and not key:
            raise BadValue(f"The environment variable {key_variable} is not set.")
        if key and address.scheme == "http" and address.host not in ("127.0.0.1", "localhost"):
            raise BadValue(
                f"A key would go to {address.host} unencrypted. Use https, or leave "
                "key_variable out."
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=_SECONDS)
        known = self._get("/v1/models") or {}
        listed = [entry for entry in known.get("data") or [] if isinstance(entry, dict)]
        self._meta: dict[str, Any] = (listed[0].get("meta") or {}) if listed else {}
        self.model = model or (listed[0].get("id") if listed else None) or "model"
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
        return self._meta.get("n_vocab")

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
                f"{shown(said)}"
            )
        return found

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
            text = self._post("/apply-template", {"messages": list(messages)})["prompt"]
            body = {"content": text, "add_special": True, "parse_special": True}
            return [int(token) for token in self._post("/tokenize", body)["tokens"]]
        try:
            found = self._post("/tokenize", {"model": self.model, "messages": list(messages)})
        except CourseError:
            return None
        tokens = found.get("tokens")
        return [int(token) for token in tokens] if isinstance(tokens, list) else None

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
            try:
                choice = answer["choices"][0]
                text, ended = choice["message"]["content"] or "", choice["finish_reason"]
            except (KeyError, IndexError, TypeError):
                raise CourseError(
                    f"{self.name} at {self.url} did not answer as OpenAI's chat.completions do: "
                    f"{shown(answer)}"
                ) from None
            used = (answer.get("usage") or {}).get("prompt_tokens")
            found.append(Answer(text, ended == "stop", used))
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
            listed = self._post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
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
    for attempt in range(retries + 1):
        again = ""
        try:
            for chunk in client.chat.completions.create(stream=True, **request):
                piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
                again += piece
                if not (again.startswith(given) or given.startswith(again)):
                    raise CourseError(
                        f"The connection broke after {shown(given)}, and the reply to the same "
                        "request now begins differently. Ask with temperature=0, or take the new "
                        "reply whole."
                    )
                if len(again) > len(given):
                    yield again[len(given) :]
                    given = again
            return
        except (APIConnectionError, httpx.TransportError) as error:
            if attempt == retries:
                raise CourseError(
                    f"The server ended the connection {attempt + 1} times "
                    f"({type(error).__name__}); the reply so far was {shown(given)}."
                ) from None
