"""What a chat template writes: markers around answers, ends of answers, tokens of a prompt."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "course-question", "course-answer"


class Marks(NamedTuple):
    """What a chat template writes between a question and its answer, and after the answer."""

    header: str
    end: str


def with_parsed_tools(source: Mapping[str, Any]) -> Any:
    """Return an example's tools, which TRL also accepts as JSON."""
    tools = source.get("tools")
    return json.loads(tools) if isinstance(tools, str) else tools


class Template:
    """A tokenizer's chat template, or the one that a trainer uses instead."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, own: Any, model: Any):
        self.tokenizer: Any = tokenizer  # if it is None, `exists` is False
        self.own, self.model = own, model

    @property
    def exists(self) -> bool:
        """Whether there is a template at all."""
        return bool(self.tokenizer and (self.own or self.tokenizer.chat_template))

    @property
    def source(self) -> str:
        """The template's text."""
        known = self.own or (self.tokenizer.chat_template if self.tokenizer else "") or ""
        return known if isinstance(known, str) else "\n".join(map(str, known.values()))

    def render(self, messages: Any, *, opened: bool = False, **options: Any) -> str:
        """Render messages as text; `opened` adds the generation prompt."""
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.own,
            tokenize=False,
            add_generation_prompt=opened,
            **options,
        )

    def encode(self, prompt: Any, source: Mapping[str, Any], opened: bool = True) -> list[int]:
        """Tokenize a prompt as the trainer does; `source` has the tools and options."""
        if not self.tokenizer:
            raise TypeError("no tokenizer")
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        ids = self.tokenizer.apply_chat_template(
            prompt,
            chat_template=self.own,
            add_generation_prompt=opened,
            tools=with_parsed_tools(source),
            return_dict=True,
            **(source.get("chat_template_kwargs") or {}),
        )["input_ids"]
        return ids[0] if ids and isinstance(ids[0], list) else ids

    @functools.cached_property
    def marks(self) -> Marks | None:
        """The template's markers, or None if there is no template."""
        if not self.exists:
            return None
        question = [{"role": "user", "content": _QUESTION}]
        answered = [*question, {"role": "assistant", "content": _ANSWER}]
        try:
            prompt = self.render(question, opened=True).split(_QUESTION)[1]
            between, end = self.render(answered).split(_QUESTION)[1].split(_ANSWER)
        except (TemplateError, IndexError, TypeError, ValueError, AttributeError, KeyError):
            return None  # such a template needs more than a question and an answer
        same = 0
        while same < min(len(prompt), len(between)) and prompt[same] == between[same]:
            same += 1
        header = prompt[:same].strip()
        return Marks(header, end.strip()) if header else None

    @functools.cached_property
    def asking(self) -> str:
        """What the template writes before a user's follow-up question; empty if not found."""
        if not self.exists:
            return ""
        first = {"role": "user", "content": "course-beginning"}
        answer = {"role": "assistant", "content": _ANSWER}
        again = {"role": "user", "content": _QUESTION}
        try:
            whole = self.render([first, answer, again])
            between = whole.split(_ANSWER)[1].split(_QUESTION)[0]
        except Exception:  # a template may raise anything
            return ""
        # The answer's own end comes first.
        end = self.marks.end if self.marks else ""
        mark = between.strip().removeprefix(end).strip() if end else between.strip()
        return mark if len(mark) > 3 else ""

    @functools.cached_property
    def special(self) -> set[str]:
        """The special tokens that the template writes into a conversation."""
        if not self.exists:
            return set()
        messages = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
        ]
        try:
            text = self.render(messages)
        except Exception:  # a template may raise anything
            return set()
        known = {*self.tokenizer.all_special_tokens}
        known |= {
            str(token)
            for token in self.tokenizer.added_tokens_decoder.values()
            if getattr(token, "special", False)
        }
        return {token for token in known if len(token) > 2 and token in text}

    @functools.cached_property
    def known_ends(self) -> set[int]:
        """The tokens that stop generation, from the generation config and the tokenizer."""
        found: set[Any] = set()
        config = getattr(self.model, "generation_config", None)
        for ids in (getattr(config, "eos_token_id", None),):
            found |= set(ids if isinstance(ids, list) else [ids])
        if self.tokenizer:
            found.add(self.tokenizer.eos_token_id)
        if found == {None}:
            ids = getattr(self.model.config, "eos_token_id", None)
            found |= set(ids if isinstance(ids, list) else [ids])
        return {each for each in found if each is not None}

    @functools.cached_property
    def ends(self) -> set[int]:
        """The tokens that end an answer: those of generation, and what the template writes."""
        found = set(self.known_ends)
        if self.tokenizer and self.marks and self.marks.end:
            end = self.tokenizer.encode(self.marks.end, add_special_tokens=False)
            found.add(end[0])
        ids = getattr(self.model.config, "eos_token_id", None)
        return found | {
            each for each in (ids if isinstance(ids, list) else [ids]) if each is not None
        }
