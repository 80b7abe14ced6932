"""Prompt a model in one line: `ask = runner("chat")`, then `ask("Tell me …")`.

Introduced in notebook 01. It wraps `tokenizer.apply_chat_template` and `model.generate`, which the
notebooks show directly where they are the subject.
"""

from __future__ import annotations

import copy
import functools
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
)

from course_utils._core import checks
from course_utils._core.printable import visible
from course_utils._core.undisturbed import random_state_kept
from course_utils.errors import BadValue, unknown
from course_utils.models._catalog import catalog
from course_utils.models._loading import load_model, load_tokenizer, resolve
from course_utils.models._quantization import check_quantization

PROMPT = "{prompt}"
_BATCH = 8
_NEW_TOKENS, _MOST_TOKENS = 128, 10**6
_LARGEST = 10_000  # 16 bits are not enough for larger values
_COLDEST = 1e-6  # logits divided by less overflow
_MOST_BEAMS = 100  # each is a copy of the prompt


def _real(name: str, value: Any, **limits: float) -> float:
    """Convert to float: transformers rejects an integer there, as in temperature=1."""
    return float(checks.number(name, value, **limits))


# Valid values of the most common generation options; transformers checks some of them late.
_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": functools.partial(checks.whole, least=1, most=_MOST_TOKENS),
    "min_new_tokens": functools.partial(checks.whole, least=0, most=_MOST_TOKENS),
    "temperature": functools.partial(_real, least=0, most=_LARGEST),
    "top_p": functools.partial(_real, above=0, most=1),
    "min_p": functools.partial(_real, least=0, most=1),
    "typical_p": functools.partial(_real, above=0, most=1),
    "top_k": functools.partial(checks.whole, least=1, most=_MOST_TOKENS),
    "repetition_penalty": functools.partial(_real, least=0.01, most=_LARGEST),
    "no_repeat_ngram_size": functools.partial(checks.whole, least=0, most=_MOST_TOKENS),
    "num_beams": functools.partial(checks.whole, least=1, most=_MOST_BEAMS),
    "do_sample": checks.flag,
}

# Runners do not change the weights, so runners of the same model share them.
_shared: weakref.WeakValueDictionary[tuple, PreTrainedModel] = weakref.WeakValueDictionary()


class Reply(str):
    """A model's reply: the text, and how it was generated.

    Attributes:
        tokens: the number of new tokens, including the EOS token.
        finished: whether the model ended the reply itself rather than running out of tokens.
        seconds: how long generation took; for a list of prompts, the time of the batch.
    """

    tokens: int
    finished: bool
    seconds: float

    def __new__(cls, text: str, tokens: int, finished: bool, seconds: float) -> Reply:
        reply = super().__new__(cls, text)
        reply.tokens, reply.finished, reply.seconds = tokens, finished, seconds
        return reply


class _CallbackStreamer(TextStreamer):
    """Pass each finished piece of text to a function, instead of printing it."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        receive: Callable[[str], None],
        end: Callable[[], None] = lambda: None,
    ):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.receive, self.finish = receive, end

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.receive(text)
        if stream_end:
            self.finish()


def _print_piece(piece: str) -> None:
    """Print a piece of a reply without its control characters, which a terminal would execute."""
    print(visible(piece), end="", flush=True)


def _checked(template: Any) -> bool | str:
    """Return a template if it is valid."""
    if isinstance(template, str):
        if PROMPT not in checks.text("template", template):
            raise ValueError(f"The template {checks.shown(template)} has no {PROMPT} in it.")
        return template
    if not isinstance(template, bool):
        raise checks.refuse("template", template, f"True, False, or a text with {PROMPT} in it")
    return template


class Runner:
    """A model with its tokenizer, ready for prompts. Created by `runner`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: bool | str = True,
        **defaults: Any,
    ):
        self.model = checks.a("model", model, nn.Module, "a model, as load_model gives it")
        tokenizer = checks.a(
            "tokenizer",
            tokenizer,
            PreTrainedTokenizerBase,
            "a tokenizer, as load_tokenizer gives it",
        )
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.padding_side = "left"  # a reply begins where its prompt ends
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.template = _checked(template)
        self.defaults = defaults
        self._generation_config({})  # refuse an invalid default now

    def prompt(
        self, text: str, *, template: bool | str | None = None, system: str | None = None
    ) -> str:
        """Return the exact text that the model receives for a prompt.

        Args:
            text: the user's prompt.
            template: True for the model's chat template, False for none, or a string that contains
                `{prompt}`, such as `"[INST] {prompt} [/INST]"`; None for the runner's default.
            system: a system prompt; it requires the chat template.

        Raises:
            ValueError: the model has no chat template, the template has no `{prompt}`, there is a
                system prompt without a chat template, or an argument is not a string.
        """
        checks.text("prompt", text)
        template = self.template if template is None else _checked(template)
        if system is not None:
            checks.text("system", system)
        if template is not True and system is not None:
            raise ValueError("A system prompt needs the chat template: template=True.")
        if template is False:
            return text
        if isinstance(template, str):
            return template.replace(PROMPT, text)
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.model.name_or_path} has no chat template, as base models often don't. "
                f"Use template=False, or a text with {PROMPT} in it."
            )
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": text})
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )

    def __call__(
        self,
        prompts: str | list[str],
        *,
        template: bool | str | None = None,
        system: str | None = None,
        stream: bool | Callable[[str], None] = False,
        seed: int | None = None,
        **generation: Any,
    ) -> Reply | list[Reply]:
        """Generate a reply: one prompt gives one reply, a list gives a list.

        Args:
            prompts: a prompt, or a list of prompts.
            template, system: see `prompt`.
            stream: True to print the reply while it is generated, or a function that receives
                its pieces.
            seed: the seed for sampling; the global random state is left unchanged.
            generation: `max_new_tokens` (default 128, or as many as fit into the context),
                `temperature` (0 for greedy decoding), and all other options of
                `transformers.GenerationConfig`; None for the default.

        Raises:
            ValueError: a prompt is empty, not a string, or does not fit into the model's context
                with its reply; a generation option is unknown or has an invalid value, such as a
                temperature below 0.
        """
        if not isinstance(prompts, str):
            prompts = checks.texts("prompts", prompts)
        many = [prompts] if isinstance(prompts, str) else prompts
        template = self.template if template is None else _checked(template)
        if not (isinstance(stream, bool) or callable(stream)):
            raise checks.refuse("stream", stream, "True, False, or a function that takes a text")
        if seed is not None:
            checks.whole("seed", seed, 0, 2**64 - 1)
        texts = [self.prompt(text, template=template, system=system) for text in many]
        if empty := [index for index, text in enumerate(texts) if not text]:
            raise ValueError(f"An empty prompt gives a model nothing to go on (prompt {empty[0]}).")
        config = self._generation_config(generation)
        asked = {**self.defaults, **generation}
        # A rendered chat template already contains its special tokens; a bare text still gets the
        # ones that the model expects, such as Llama's BOS token.
        bare = template is not True
        self._fit(texts, config, bare, asked.get("max_new_tokens") is not None)
        size = 1 if stream else _BATCH
        replies: list[Reply] = []
        cuda = [self.model.device] if self.model.device.type == "cuda" else []
        with random_state_kept(cuda):
            if seed is not None:
                torch.manual_seed(seed)
            for start in range(0, len(texts), size):
                try:
                    replies += self._generate(texts[start : start + size], config, stream, bare)
                except (ArithmeticError, TypeError, ValueError) as error:
                    options = {name: value for name, value in asked.items() if name not in _OPTIONS}
                    if not options:
                        raise
                    raise BadValue(
                        f"The model cannot generate with {checks.shown(options)}: {error}"
                    ) from error
        return replies[0] if isinstance(prompts, str) else replies

    def _fit(self, texts: list[str], config: GenerationConfig, bare: bool, asked: bool) -> None:
        """Refuse what does not fit into the model's context; reduce a default length to fit."""
        text_config = self.model.config.get_text_config()
        room = getattr(text_config, "max_position_embeddings", None)
        if room is None:
            return
        for place, text in enumerate(texts):
            tokens = len(self.tokenizer(text, add_special_tokens=bare)["input_ids"])
            said = f"prompts[{place}]" if len(texts) > 1 else "The prompt"
            takes = f"{self.model.name_or_path} takes {room:,} at most, its reply included"
            if tokens >= room:
                raise BadValue(f"{said} has {tokens:,} tokens, and {takes}. Shorten the prompt.")
            if tokens + config.max_new_tokens > room and asked:
                raise BadValue(
                    f"{said} has {tokens:,} tokens, and {takes}. So max_new_tokens="
                    f"{config.max_new_tokens:,} is too many: {room - tokens:,} are possible. Ask "
                    "for fewer, or shorten the prompt."
                )
            config.max_new_tokens = min(config.max_new_tokens, room - tokens)

    def _generation_config(self, options: dict[str, Any]) -> GenerationConfig:
        options = {
            "max_new_tokens": _NEW_TOKENS,
            "temperature": 0.0,
            **{
                name: value
                for name, value in {**self.defaults, **options}.items()
                if value is not None  # the default
            },
        }
        for name, value in options.items():
            if name in _OPTIONS:
                options[name] = _OPTIONS[name](name, value)
        temperature = options.pop("temperature")
        if 0 < temperature < _COLDEST:
            raise checks.refuse("temperature", temperature, f"0, or {_COLDEST:f} or more")
        config = copy.deepcopy(self.model.generation_config)
        known = config.to_dict()
        if wrong := [name for name in options if name not in known and not hasattr(config, name)]:
            raise BadValue(str(unknown("generation option", wrong[0], sorted(known))))
        # The sampling settings of a hub model must not leak into a greedy reply.
        config.update(temperature=None, top_p=None, top_k=None, do_sample=temperature > 0)
        if temperature > 0:
            config.update(temperature=temperature)
        config.update(pad_token_id=self.tokenizer.pad_token_id, max_length=None, **options)
        return config

    @torch.inference_mode()
    def _generate(
        self,
        texts: list[str],
        config: GenerationConfig,
        stream: bool | Callable[[str], None],
        bare: bool,
    ) -> list[Reply]:
        batch = self.tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=bare
        ).to(self.model.device)
        streamer = None
        if callable(stream):
            streamer = _CallbackStreamer(self.tokenizer, stream)
        elif stream:
            streamer = _CallbackStreamer(self.tokenizer, _print_piece, print)
        start = time.perf_counter()
        output = self.model.generate(**batch, generation_config=config, streamer=streamer)
        seconds = time.perf_counter() - start
        ends = config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        replies = []
        for row in output[:, batch["input_ids"].shape[1] :].tolist():
            stop = next((i for i, token in enumerate(row) if token in ends), None)
            count = len(row) if stop is None else stop + 1
            text = self.tokenizer.decode(row[:count], skip_special_tokens=True)
            replies.append(Reply(text, count, stop is not None, seconds))
        return replies


def runner(
    name: str = "chat",
    quantization: str | BitsAndBytesConfig | None = None,
    *,
    template: bool | str | None = None,
    source: str = "auto",
    **defaults: Any,
) -> Runner:
    """Load a model that can be called with prompts.

    Args:
        name, quantization, source: see `load_model`, whose errors are raised too.
        template: the default template for prompts, see `Runner.prompt`; by default the chat
            template for a chat model, none for a base model.
        defaults: default generation options, such as `max_new_tokens`.

    Raises:
        ValueError: the template or a generation option is invalid.
    """
    if template is not None:
        _checked(template)
    check_quantization(quantization)
    origin = resolve(name, source)
    tokenizer = load_tokenizer(name, source=source)
    if template is None:
        known = catalog().models.get(origin.id)
        kind = known.kind if known else None
        template = tokenizer.chat_template is not None and kind != "base"
    key = (str(origin.folder), str(quantization))
    model = _shared.get(key)
    if model is None:
        model = load_model(name, quantization, source=source)
        _shared[key] = model
    else:
        origin.announce(name, "in memory already")
    return Runner(model, tokenizer, template=template, **defaults)
