"""A model behind an OpenAI-compatible server, called like a `Runner`. Introduced in notebook 08.

Such servers are llama.cpp's, Ollama, vLLM and most hosted ones.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any
from urllib.parse import urlsplit

from course_utils._core import checks
from course_utils.errors import EndpointError

MODEL_VARIABLE, ADDRESS_VARIABLE = "JUDGE_MODEL", "JUDGE_BASE_URL"
_ADDRESS = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/[\w./~-]*)?")
_MEANINGS = {
    401: "the key in {variable} was refused, or is not set. Set it to a key that is valid there.",
    403: "the key in {variable} may not use this model, or is not set.",
    404: "there is no such model, or the address lacks /v1 at its end.",
    429: "too many requests, or your quota is used up. Wait, or ask for less.",
    503: "it is overloaded, or still loading the model. Try again in a minute.",
}


def _hide(text: str, key: str | None) -> str:
    """Remove the words of a text that share eight characters in a row with the key."""
    pieces = [key[start : start + 8] for start in range(len(key) - 7)] if key else []
    shows = re.compile("|".join(map(re.escape, pieces)) or r"(?!)")
    return re.sub(r"\S+", lambda word: "…" if shows.search(word[0]) else word[0], text)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Endpoint:
    """A model behind an OpenAI-compatible server. Called with prompts, it returns replies.

    The API key is read from the environment at each call and kept nowhere: no error, repr or pickle
    contains it, and it is cut out of replies. It is sent through `https://` only, or to this
    machine; a local server needs none. Prompts are sent one by one.

    Args:
        model: the model's name on the server; by default the environment variable JUDGE_MODEL.
        base_url: the server's address, often ending in /v1; by default JUDGE_BASE_URL.
        timeout: the timeout of each attempt in seconds, as in `openai.OpenAI`.
        max_retries: how often `openai.OpenAI` retries a failed request.
        key_variable: the environment variable that holds the key.

    Raises:
        EndpointError: no model or address is set, or the address is not an http(s) URL.
        BadValue: another argument is invalid.
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        timeout: float = 30,
        max_retries: int = 2,
        key_variable: str = "OPENAI_API_KEY",
    ):
        for name, given in (("model", model), ("base_url", base_url)):
            if given is not None:
                checks.text(name, given)
        self.model = model or os.environ.get(MODEL_VARIABLE, "").strip()
        self.base_url = base_url or os.environ.get(ADDRESS_VARIABLE, "").strip()
        self.timeout = checks.number("timeout", timeout, above=0, most=24 * 3600)
        self.max_retries = checks.whole("max_retries", max_retries, least=0, most=100)
        self.key_variable = checks.text("key_variable", key_variable)
        if not re.fullmatch(r"\w+", key_variable):
            raise checks.refuse("key_variable", key_variable, "the name of an environment variable")
        if not self.model or not self.base_url:
            raise EndpointError(
                f"No endpoint is set up: {MODEL_VARIABLE} (or model=) has to name the model, and "
                f"{ADDRESS_VARIABLE} (or base_url=) the server, such as http://localhost:8080/v1."
            )
        if not _ADDRESS.fullmatch(self.base_url):
            # It is not shown, as it may contain a password.
            raise EndpointError(
                "The server's address (base_url) has to have the form https://host:port/path, "
                f"without a user name, a password or a query. The key belongs in {key_variable}."
            )

    @staticmethod
    def configured() -> bool:
        """Whether the environment variables name a model and an address."""
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
        """Return the reply to a prompt, or a list of replies to a list of prompts.

        Args:
            prompts: a prompt, or a list of them.
            system: a system prompt.
            temperature: 0 for greedy decoding; None for the server's default.
            max_new_tokens: the maximum length of a reply, in tokens.
            seed: the seed for sampling, if the server supports it.

        Raises:
            EndpointError: the server cannot be reached, refuses, or returns no reply; or the key
                would be sent unencrypted.
            BadValue: a prompt is empty, or an argument is invalid.
        """
        many = [prompts] if isinstance(prompts, str) else checks.texts("prompts", prompts)
        for text in many:
            checks.text("prompts", text, empty=False)
        if system is not None:
            checks.text("system", system)
        if temperature is not None:
            checks.number("temperature", temperature, least=0)
        checks.whole("max_new_tokens", max_new_tokens, least=1, most=10**7)
        if seed is not None:
            checks.whole("seed", seed, least=-(2**63), most=2**63 - 1)
        options = {"temperature": temperature, "seed": seed, "max_tokens": max_new_tokens}
        options = {name: value for name, value in options.items() if value is not None}
        replies = self._ask(
            many, [{"role": "system", "content": system}] if system else [], options
        )
        if isinstance(replies, BaseException):
            raise replies
        return replies[0] if isinstance(prompts, str) else replies

    def _ask(
        self, prompts: list[str], before: list[dict[str, str]], options: dict[str, Any]
    ) -> list[str] | BaseException:
        """Return the replies, or an error for the caller to raise: a traceback through here would
        include the key among the local variables."""
        import openai

        key = os.environ.get(self.key_variable, "").strip() or None
        address, who = urlsplit(self.base_url), f"{self.model} at {self.base_url}"
        local = _is_loopback(address.hostname or "")
        if key and not re.fullmatch(r"[!-~]+", key):
            return EndpointError(f"{self.key_variable} contains characters that no key has.")
        if key and address.scheme == "http" and not local:
            return EndpointError(
                f"{self.base_url} is not encrypted, and {self.key_variable} would travel in clear. "
                f"Use an https:// address, or unset {self.key_variable} where none is needed."
            )
        # A proxy would see a local server's key; a redirect would pass the prompts on.
        http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=not local)
        replies: list[str] = []
        try:
            with openai.OpenAI(
                api_key=key or "none",
                base_url=self.base_url,
                timeout=self.timeout,
                max_retries=self.max_retries,
                http_client=http,
            ) as client:
                for prompt in prompts:
                    asked = {"messages": [*before, {"role": "user", "content": prompt}], **options}
                    try:
                        answer = client.chat.completions.create(model=self.model, **asked)
                    except openai.BadRequestError as error:
                        if "max_completion_tokens" not in str(error.body):
                            raise
                        # Newer OpenAI models require this name.
                        options["max_completion_tokens"] = options.pop("max_tokens")
                        asked["max_completion_tokens"] = asked.pop("max_tokens")
                        answer = client.chat.completions.create(model=self.model, **asked)
                    choice = answer.choices[0]
                    if not (choice.message.content or "").strip():
                        cut = choice.finish_reason == "length"
                        why = ": it used up max_new_tokens first" if cut else ""
                        return EndpointError(f"{who} wrote no reply{why}.")
                    replies.append(_hide(choice.message.content, key))
        except KeyboardInterrupt:
            return KeyboardInterrupt()
        except openai.APITimeoutError:
            return EndpointError(
                f"{who} did not answer within {self.timeout:g} s, asked {self.max_retries + 1} "
                "times. Is it busy loading the model? A larger timeout= waits longer."
            )
        except openai.APIConnectionError as error:
            cause = _hide(str(error.__cause__), key)[:300]
            return EndpointError(f"{self.base_url} cannot be reached ({cause}). Is it running?")
        except openai.APIStatusError as error:
            status = error.status_code
            usual = "the request was refused." if status < 500 else "a fault on the server's side."
            means = _MEANINGS.get(status, usual).format(variable=self.key_variable)
            said = error.message.removeprefix(f"Error code: {status}").removeprefix(" - ")[:3000]
            said = re.sub(r"\S*\*{3}\S*", "…", _hide(said, key))[:300]  # half-masked keys too
            told = f" It says: {said}" if said else ""
            return EndpointError(f"{who} answered {status}: {means}{told}")
        except Exception as error:  # whatever it is, its text may contain the key
            return EndpointError(
                f"{who} sent an answer that is not a chat completion ({type(error).__name__}). Is "
                "this the address of the API? It often ends in /v1."
            )
        return replies
