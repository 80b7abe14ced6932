"""The checks of notebook 03.2: fine-tuning Yoda, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from peft import LoraConfig
from trl import SFTConfig

from course_utils.exercises._check import Empty, Wrong, call, exercise

SYSTEM = "Say it like Yoda."
_ROWS = (
    {"sentence": "I see a red house.", "yoda": "A red house I see.", "yoda_extra": "(not this)"},
    {"sentence": "We eat.", "yoda": "Eat, we do.", "yoda_extra": "(not this)"},
)
_SENTENCES = ["I see a red house.", "The dog found two bones."]


def _turns(given: dict[str, Any], column: str, roles: list[str]) -> list[str]:
    """Return the contents of a column's messages, after checking their format."""
    if column not in given:
        raise Wrong(f"The column {column!r} is missing; there are {', '.join(map(repr, given))}.")
    messages = given[column]
    if isinstance(messages, str):
        raise Wrong(f"{column!r} is a text. For a chat model it has to be a list of messages.")
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in messages
    ):
        raise Wrong(f"{column!r} should be a list of messages, each with a role and a content.")
    found = [turn["role"] for turn in messages]
    if found != roles:
        raise Wrong(f"{column!r} has the roles {found}: who is missing, or one too many?")
    return [turn["content"] for turn in messages]


@exercise(
    "yoda.format",
    "Notebook 03.1 has such a function, for Pig Latin.",
    "Who says what? The task comes from the system, the sentence from the user.",
    "What is to be learned stands alone in the completion, as the assistant's turn.",
)
def _format(function: Callable[[dict[str, str]], dict[str, Any]]) -> None:
    for row in _ROWS:
        given = call(function, dict(row))
        if not isinstance(given, dict):
            raise Wrong(f"A dictionary of two columns is expected; this is {given!r}.")
        system, asked = _turns(given, "prompt", ["system", "user"])
        (answer,) = _turns(given, "completion", ["assistant"])
        if system != SYSTEM:
            raise Wrong(f"The system's message should be SYSTEM; this is {system!r}.")
        if row["yoda"] in asked or row["yoda"] in system:
            raise Wrong("The prompt holds the answer: nothing is left to learn.")
        if asked != row["sentence"]:
            raise Wrong(f"The user should say the sentence and nothing else; this is {asked!r}.")
        if answer == row["yoda_extra"]:
            raise Wrong("Take the column without the occasional ending.")
        if answer.strip() == row["yoda"] and answer != row["yoda"]:
            raise Wrong("There is white space around the answer; it would be learned too.")
        if answer != row["yoda"]:
            raise Wrong(f"The assistant should answer in Yoda's words; this is {answer!r}.")


@exercise(
    "yoda.adapter",
    "Notebook 02 compared ranks, targets and alphas on this very job.",
    "Which layers? One of its five rules says it.",
)
def _adapter(function: Callable[[], LoraConfig]) -> None:
    given = call(function)
    if not isinstance(given, LoraConfig):
        raise Wrong(f"A LoraConfig is expected; this is {type(given).__name__}.")
    if not 4 <= given.r <= 64:
        raise Wrong(f"A rank of {given.r}: for this task, something from 4 to 64 will do.")
    factor = given.lora_alpha / (given.r**0.5 if given.use_rslora else given.r)
    if not 0.5 <= factor <= 16:
        raise Wrong(
            f"alpha={given.lora_alpha} makes a factor of {factor:g} before the update: "
            f"{'hardly anything would be learned' if factor < 1 else 'the training may diverge'}."
        )
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    targets = given.target_modules
    if targets != "all-linear" and (not isinstance(targets, set) or not linear <= targets):
        raise Wrong(f"target_modules is {targets!r}: that leaves out some linear layers.")
    if given.init_lora_weights is False:
        raise Wrong("With init_lora_weights=False the model does not start as itself.")
    if given.bias != "none":
        raise Wrong(f"bias={given.bias!r} changes the base model, and other adapters share it.")


@exercise(
    "yoda.settings",
    "The arguments that matter are in section 3 of notebook 03.1, by what they are for.",
    "You are given steps and batch size. Which arguments take them?",
    "LoRA takes a learning rate at least ten times as high as TRL's default.",
)
def _settings(function: Callable[[int, int], dict[str, Any]]) -> None:
    for steps, batch in ((30, 8), (100, 16)):
        given = call(function, steps, batch)
        if not isinstance(given, dict):
            raise Wrong(f"A dictionary of arguments is expected; this is {given!r}.")
        if not given:
            raise Empty
        known = {field.name for field in dataclasses.fields(SFTConfig)}
        if wrong := sorted(map(str, set(given) - known)):
            raise Wrong(f"SFTConfig does not know {', '.join(wrong)}.")
        if given.get("max_steps") != steps:
            raise Wrong(
                f"Asked for {steps} steps, the training would take "
                f"{given.get('max_steps', 'as many as the epochs need')}."
            )
        size = given.get("per_device_train_batch_size", 8)
        seen = size * given.get("gradient_accumulation_steps", 1)
        if seen != batch:
            raise Wrong(f"Asked for {batch} sentences a step, it would take {seen}.")
        rate = given.get("learning_rate", 2e-5)
        if not isinstance(rate, int | float) or isinstance(rate, bool):
            raise Wrong(f"learning_rate is {rate!r}; a number is expected.")
        if not 2e-4 <= rate <= 5e-3:
            raise Wrong(
                f"A learning rate of {rate:g} is {'low' if rate < 2e-4 else 'high'} for LoRA, "
                f"in {steps} steps."
            )
        if given.get("completion_only_loss") is False:
            raise Wrong("The prompt would be trained on.")
        if "logging_steps" not in given or given["logging_steps"] > 5:
            raise Wrong("Let it log every 5 steps or more often, to have a curve to look at.")


class _Listener:
    """A mock model that records how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, prompts: Any, **options: Any) -> Any:
        self.calls.append((prompts, options))
        if isinstance(prompts, str):
            return f" {prompts[::-1]}"
        return [f" {prompt[::-1]}" for prompt in prompts]


@exercise(
    "yoda.translate",
    "The tuned model has to be asked just as it was trained.",
    "`ask(sentences, system=…, max_new_tokens=…)` takes a list and gives a list.",
)
def _translate(function: Callable[[Any, list[str]], list[str]]) -> None:
    ask = _Listener()
    given = call(function, ask, list(_SENTENCES))
    if not ask.calls:
        raise Wrong("The model was not asked at all: call `ask`.")
    asked: list[str] = []
    for prompts, options in ask.calls:
        asked += [prompts] if isinstance(prompts, str) else list(prompts)
        if options.get("system") != SYSTEM:
            raise Wrong(
                f"It was trained with the system prompt {SYSTEM!r} and is asked with "
                f"{options.get('system')!r}."
            )
        if options.get("temperature"):
            raise Wrong("There is one right answer: no sampling.")
        if options.get("template", True) is not True:
            raise Wrong("It was trained with its chat template, and is asked without.")
        if options.get("max_new_tokens", 128) < 30:
            raise Wrong("Long sentences would be cut: allow 30 tokens or more.")
    if asked != _SENTENCES:
        raise Wrong(f"It was trained on bare sentences; you asked {asked[0]!r}.")
    if not isinstance(given, list) or len(given) != len(_SENTENCES):
        raise Wrong(f"A list of {len(_SENTENCES)} replies is expected; this is {given!r}.")
    if [str(reply).strip() for reply in given] != [text[::-1] for text in _SENTENCES]:
        raise Wrong("The replies are not those that the model gave, in their order.")
