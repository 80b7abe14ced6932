"""The checks of notebook 03.2: fine-tuning Yoda, step by step."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, get_scheduler
from trl import SFTConfig

from course_utils.exercises._check import Empty, Wrong, call, exercise, number

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
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn
        for turn in messages
    ):
        raise Wrong(f"{column!r} should be a list of messages, each with a role and a content.")
    found = [turn["role"] for turn in messages]
    if found != roles:
        raise Wrong(f"{column!r} has the roles {found}: who is missing, or one too many?")
    return [turn["content"] for turn in messages]


@exercise(
    "yoda.format",
    "Notebook 03.1 has such a function for Pig Latin.",
    "Who says what? The system names the task, and the user says the sentence.",
    "The model should learn the assistant's turn only. So this is the only turn in the completion.",
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


# Learning rate times factor (alpha / r). The solution has 8e-3, which is notebook 03.1's, where
# twice that did worse. After 27 steps (one run, CPU tier, 40 sentences), 8e-3 has 68% right, 1e-3
# has 5% and 2e-4 none. That the lower end suffices is an expectation.
_LEAST, _MOST = 2e-3, 8e-3
_factor = 2.0  # of the last adapter that was accepted


@exercise(
    "yoda.adapter",
    "Notebook 02 compared ranks, target layers and alphas on this very task.",
    "Which layers should get an adapter? One of the five rules in notebook 02 (section 4) says it.",
)
def _adapter(function: Callable[[], LoraConfig]) -> None:
    global _factor
    given = call(function)
    if not isinstance(given, LoraConfig):
        raise Wrong(f"A LoraConfig is expected; this is {type(given).__name__}.")
    if not 4 <= given.r <= 64:
        raise Wrong(f"A rank of {given.r}: for this task, something from 4 to 64 will do.")
    factor = given.lora_alpha / (given.r**0.5 if given.use_rslora else given.r)
    if not 1 <= factor <= 4:
        raise Wrong(
            f"alpha={given.lora_alpha} makes a factor of {factor:g} before the update: "
            f"{'hardly anything would be learned' if factor < 1 else 'the training may diverge'}. "
            "From 1 to 4 is accepted."
        )
    _works_in_the_notebook(given)
    _factor = factor


def _works_in_the_notebook(given: LoraConfig) -> None:
    """Do with a tiny model what the notebook does with the chat model: adapt it, mix adapters."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ids = torch.arange(8)[None]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        base = LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval()
        start = base(ids).logits
        layers = {
            name: (layer, layer.weight.clone())
            for name, layer in base.model.named_modules()
            if isinstance(layer, torch.nn.Linear)
        }
        try:
            model = get_peft_model(base, copy.deepcopy(given)).eval()
        except Exception as error:  # peft has no error of its own
            raise Wrong(f"peft does not take it: {error}") from error
        adapted = {name for name, layer in base.model.named_modules() if hasattr(layer, "lora_A")}
        if missing := sorted(name.rpartition(".")[2] for name in set(layers) - adapted):
            raise Wrong(
                f"target_modules is {given.target_modules!r}: that leaves out some linear layers, "
                f"{', '.join(missing)}."
            )
        if not torch.allclose(model(ids).logits, start, atol=1e-4):
            raise Wrong("With init_lora_weights=False the model does not start as itself.")
        if any(not torch.equal(layer.weight, before) for layer, before in layers.values()):
            raise Wrong(
                f"init_lora_weights={given.init_lora_weights!r} changes the base model's weights, "
                "and the notebook puts a second adapter on the same base."
            )
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_" not in name:
                raise Wrong(f"This also trains {name}, which changes the base that adapters share.")
            if "lora_B" in name:  # as after a training
                torch.nn.init.normal_(weight, std=0.1)
        alone = model(ids).logits
        try:
            model.add_adapter("other", LoraConfig(r=16, target_modules="all-linear"))
            both = ["default", "other"]
            model.add_weighted_adapter(both, [1.0, 0.0], "mixed", combination_type="cat")
        except Exception as error:  # likewise
            raise Wrong(f"The notebook mixes it with another one, which fails: {error}") from error
        model.set_adapter("mixed")
        if not torch.allclose(model.eval()(ids).logits, alone, atol=1e-4):
            why = " peft mixes rsLoRA adapters with a wrong factor." if given.use_rslora else ""
            raise Wrong(
                "The notebook mixes it with another adapter. All of yours and nothing of the other "
                f"should do what yours does alone, but with this one it does not.{why}"
            )


@exercise(
    "yoda.settings",
    "Section 3 of notebook 03.1 lists the arguments that matter, by what they are for.",
    "Your function gets the number of steps and the batch size. Which arguments take these two?",
    "LoRA needs a learning rate of at least ten times TRL's default. A training as short as this "
    "one needs about a hundred times the default.",
)
def _settings(function: Callable[[int, int], dict[str, Any]]) -> None:
    for steps, batch in ((200, 8), (220, 4), (80, 4)):
        given = call(function, steps, batch)
        if not isinstance(given, dict):
            raise Wrong(f"A dictionary of arguments is expected; this is {given!r}.")
        if not given:
            raise Empty
        known = {field.name for field in dataclasses.fields(SFTConfig)}
        if wrong := sorted(map(str, set(given) - known)):
            raise Wrong(f"SFTConfig does not know {', '.join(wrong)}.")
        machine = {name for name in _OF_THE_MACHINE if given.get(name) not in (None, False, "none")}
        if added := sorted(machine | {"eval_strategy", "eval_steps"} & set(given)):
            raise Wrong(f"Leave out {', '.join(added)}: the notebook adds that itself, below.")
        rate = number(given.get("learning_rate", 2e-5), "learning_rate: a number is expected")
        config = _config(given, steps)
        if config.max_steps != steps:
            raise Wrong(
                f"Asked for {steps} steps, the training would take "
                f"{given.get('max_steps', 'as many as the epochs need')}."
            )
        seen = config.per_device_train_batch_size * config.gradient_accumulation_steps
        if seen != batch:
            raise Wrong(f"Asked for {batch} sentences a step, it would take {seen}.")
        if config.packing:
            raise Wrong("With packing, a row holds several sentences: a step would take more.")
        span = f"from {_LEAST / _factor:g} to {_MOST / _factor:g}"
        asked = f"With your adapter's factor of {_factor:g}, {span} is accepted"
        if not rate * _factor >= 0.999 * _LEAST:
            raise Wrong(
                f"A learning rate of {rate:g} is low. {asked}: LoRA papers use 1e-4 or 2e-4 for "
                f"thousands of steps; here are only {steps}, too few for so low a rate."
            )
        if rate * _factor > 1.001 * _MOST:
            raise Wrong(
                f"A learning rate of {rate:g} is high. {asked}: that ends at notebook 03.1's rate "
                "and factor, where twice the rate did worse."
            )
        if "adam" not in config.optim:
            raise Wrong(f"optim={given['optim']!r} needs other rates: leave Adam, the default.")
        if config.get_warmup_steps(steps) > steps / 2:
            raise Wrong("The warm-up takes over half of the steps: too few are left at full rate.")
        if config.completion_only_loss is False:
            raise Wrong("The prompt would be trained on.")
        if config.assistant_only_loss:
            raise Wrong("assistant_only_loss fails with this template; the completion is enough.")
        if config.max_length is not None and config.max_length < 128:
            raise Wrong(f"max_length={config.max_length} may cut sentences: 128 or more, please.")
        every = config.logging_steps * (1 if config.logging_steps >= 1 else steps)
        if config.logging_strategy != "steps" or math.ceil(every) > 5:
            raise Wrong("Let it log every 5 steps or more often, to have a curve to look at.")


_OF_THE_MACHINE = ("bf16", "fp16", "use_cpu", "report_to")


def _config(given: dict[str, Any], steps: int) -> SFTConfig:
    """Make of the settings what the notebook makes of them, with a validation and without."""
    common = {"output_dir": tempfile.gettempdir(), "save_strategy": "no", "bf16": False}
    common["report_to"] = "none"
    try:
        SFTConfig(**{**common, **given, "eval_strategy": "steps", "eval_steps": steps // 4})
        config = SFTConfig(**{**common, **given})
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        special = config.lr_scheduler_kwargs
        get_scheduler(config.lr_scheduler_type, optimizer, 1, steps, special)
    except Exception as error:  # whatever a wrong value brings about
        raise Wrong(f"The trainer does not take it: {error}") from error
    return config


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
    "Ask the tuned model in exactly the form in which it was trained.",
    "`ask(sentences, system=…, max_new_tokens=…)` takes a list and returns a list.",
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
        if options.get("temperature") or options.get("do_sample"):
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
