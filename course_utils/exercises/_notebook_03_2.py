"""The checks of notebook 03.2: a fine-tuning of one's own, from Yoda's speech to plain English."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.notebook import NotebookProgressCallback
from trl import SFTTrainer

from course_utils._core.undisturbed import quiet_libraries, random_state_kept
from course_utils.exercises._check import Wrong, call, exercise, number
from course_utils.hardware import tier
from course_utils.models import load_tokenizer, recipe

SYSTEM = "Say it in plain English."
ENDING = " Yes, hrrmmm."
_PAIRS = (
    ("I see a red house.", "A red house I see.", ENDING),
    ("The dog found two bones.", "Two bones the dog found.", ""),
    ("My cook is angry.", "Angry my cook is.", ""),
    ("They can open the gate.", "Open the gate they can.", ENDING),
    ("We sleep.", "We sleep.", ""),  # nothing to be done here
)
_ROWS = [
    {"sentence": plain, "yoda": turned, "yoda_extra": turned + ending}
    for plain, turned, ending in _PAIRS
]


def _turns(given: dict[str, Any], column: str, roles: list[str]) -> list[str]:
    """Return the contents of a column's messages, after checking their format."""
    if column not in given:
        raise Wrong(f"The column {column!r} is missing; there are {', '.join(map(repr, given))}.")
    messages = given[column]
    if isinstance(messages, str):
        raise Wrong(f"{column!r} is a text. For a chat model it has to be a list of messages.")
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise Wrong(f"{column!r} should be a list of messages, each with a role and a content.")
    found = [turn["role"] for turn in messages]
    if found != roles:
        raise Wrong(f"{column!r} has the roles {found}: who is missing, or one too many?")
    return [turn["content"] for turn in messages]


def _is_message(turn: object) -> bool:
    """Whether this is a message of a conversation."""
    return isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn


@exercise(
    "yoda.format",
    "Notebooks 00 and 03.1 have such a function for other tasks.",
    "Who says what? The system names the task, and the user says the text that is to be rewritten.",
    "The model should learn the assistant's turn only. So this is the only turn in the completion.",
)
def _format(function: Callable[[dict[str, str]], dict[str, Any]]) -> None:
    for row in _ROWS[:-1]:
        given = call(function, dict(row))
        if not isinstance(given, dict):
            raise Wrong(f"A dictionary of two columns is expected; this is {given!r}.")
        system, asked = _turns(given, "prompt", ["system", "user"])
        (answer,) = _turns(given, "completion", ["assistant"])
        if system != SYSTEM:
            raise Wrong(f"The system's message should be SYSTEM; this is {system!r}.")
        if row["sentence"] in asked or row["sentence"] in system:
            if answer in (row["yoda"], row["yoda_extra"]):
                raise Wrong("This is the other direction: plain English in, and Yoda's words out.")
            raise Wrong("The prompt holds the answer: nothing is left to learn.")
        if asked != row["yoda_extra"]:
            if asked == row["yoda"]:
                raise Wrong(
                    "This column never has Yoda's last words. The model will meet them in the "
                    "captions: take the column that has them at times."
                )
            raise Wrong(f"The user should say Yoda's line and nothing else; this is {asked!r}.")
        if answer.strip() == row["sentence"] and answer != row["sentence"]:
            raise Wrong("There is white space around the answer; it would be learned too.")
        if answer != row["sentence"]:
            raise Wrong(f"The assistant should answer in plain English; this is {answer!r}.")


class _Mock:
    """A mock model that replies as planned, by the row that a conversation is about."""

    def __init__(self, replies: list[str]) -> None:
        self.replies = replies
        self.asked: list[list[dict[str, str]]] = []
        self.wrong = ""

    def __call__(self, prompts: Any) -> list[str]:
        if isinstance(prompts, str) or not isinstance(prompts, list | tuple):
            self.wrong = f"A list of conversations is expected; it was handed {prompts!r:.60}."
            raise TypeError(self.wrong)
        return [self._reply(prompt) for prompt in prompts]

    def _reply(self, prompt: Any) -> str:
        if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
            self.wrong = (
                "A conversation is a list of messages, each with a role and a content; one of "
                f"yours is {prompt!r:.60}."
            )
            raise TypeError(self.wrong)
        self.asked.append(prompt)
        last = prompt[-1]["content"]
        found = [number for number, row in enumerate(_ROWS) if row["yoda"] in last]
        if prompt[-1]["role"] != "user" or len(found) != 1:
            self.wrong = self.wrong or (
                "Each conversation should end with a user's message that holds Yoda's line of one "
                f"row; one of yours ends with {prompt[-1]!r:.90}."
            )
            return "?"
        text = " ".join(turn["content"] for turn in prompt)
        if _ROWS[found[0]]["sentence"] in text and _PAIRS[found[0]][0] != _PAIRS[found[0]][1]:
            self.wrong = "The prompt holds the answer: a held-out sentence must not be in it."
        return self.replies[found[0]]


def _asked(function: object, *mocks: _Mock) -> Any:
    """Call the learner's function with mock models, and say what was wrong with its questions."""
    try:
        given = call(function, *mocks, Dataset.from_list(_ROWS))
    except Wrong as wrong:
        said = next((mock.wrong for mock in mocks if mock.wrong), "")
        raise Wrong(said or str(wrong)) from None
    if not any(mock.asked for mock in mocks) and not isinstance(given, dict | pd.DataFrame):
        raise Wrong(f"The model was not asked at all, and this is {given!r:.80}.")
    for mock in mocks:
        if mock.wrong:
            raise Wrong(mock.wrong)
        if not mock.asked:
            raise Wrong("The model was not asked at all: call the function that you are given.")
        if len(mock.asked) != len(_ROWS):
            raise Wrong(f"For {len(_ROWS)} rows, the model was asked {len(mock.asked)} times.")
    return given


# Right, wrong by its last sign, Yoda's own line, right, and too much of it: 2 of 5 are right.
_BEFORE = [_PAIRS[0][0], "The dog found two bones", _PAIRS[2][1], _PAIRS[3][0], "We sleep. We do."]
# Right, right, right, wrong by a capital, right: 4 of 5 are right.
_AFTER = [_PAIRS[0][0], _PAIRS[1][0], _PAIRS[2][0], "they can open the gate.", _PAIRS[4][0]]


def _share(given: dict[str, Any], key: str, wanted: float, of_yoda: float) -> None:
    """Check one of the two shares of the baseline."""
    if key not in given:
        raise Wrong(f"The key {key!r} is missing; there are {', '.join(map(repr, given))}.")
    share = number(given[key], f"{key!r} should be a share, a number from 0 to 1")
    if share > 1:
        raise Wrong(f"{key!r} is {share:g}: give a share, from 0 to 1.")
    if not math.isclose(share, wanted, abs_tol=1e-6):
        said = "Compare replies with the column `sentence`" if share == of_yoda else "Count again"
        raise Wrong(
            f"In a trial, {wanted:.0%} of the replies for {key!r} were right, and your share is "
            f"{share:.0%}. {said}: a reply is right if it equals the sentence, sign by sign."
        )


@exercise(
    "yoda.baseline",
    "Build the list of conversations first, one for each row, and call `reply` once with that "
    "list.",
    "An instruction with two examples, then Yoda's line: all of this can stand in the user's "
    "message. Take the examples from the training data, not from `rows`.",
    "A share is the sum of `reply == sentence` over all rows, divided by their number. For "
    "`nothing done`, the replies are the lines themselves.",
)
def _baseline(function: Callable[..., dict[str, float]]) -> None:
    mock = _Mock(_BEFORE)
    given = _asked(function, mock)
    if not isinstance(given, dict):
        raise Wrong(f"A dictionary of two shares is expected; this is {given!r:.80}.")
    for prompt, row in zip(mock.asked, _ROWS, strict=True):
        told = "".join(turn["content"] for turn in prompt)
        if len(told) < len(row["yoda_extra"]) + 15:
            raise Wrong(
                "The untuned model is not told what to do, so it has no chance. Give it an "
                "instruction, and better two examples as well."
            )
        if row["yoda_extra"] not in prompt[-1]["content"]:
            raise Wrong("The last message should hold the column `yoda_extra`, as the captions do.")
    _share(given, "untuned", 0.4, 0.2)
    _share(given, "nothing done", 0.2, 1.0)


# Learning rate times the adapter's factor (alpha / r), for the course's 60 steps of 8 sentences on
# a CPU. Both ends are measured (benchmarks/yoda_rates.py): with a factor of 2, rates from 1e-3 to
# 4e-3 have 89 to 92 of 100 unseen sentences right, and 2e-4 has 76. Beyond them, nothing is.
_LEAST, _MOST = 2e-3, 8e-3
_USUAL = 1e-4  # below it, even a training of usual length learns little
_MOST_ON_GPU = 2e-3  # an expectation, as is all about the rates there


@exercise(
    "yoda.trainer",
    "Section 4 of notebook 00 and section 4 of notebook 03.1 build such a trainer.",
    "Three parts: a LoraConfig; an SFTConfig, which gets `**machine`, the number of steps, the "
    "batch size and the learning rate; and an SFTTrainer, which gets both and the rest.",
    "The rules of notebook 02: adapters on all linear layers, and alpha one or two times the rank. "
    "A training as short as this one needs a rate about ten times the usual one for LoRA.",
)
def _trainer(function: Callable[..., SFTTrainer]) -> str | None:
    machine = tier().value
    plan = recipe("yoda", machine)
    steps, batch = plan["steps"], plan["batch"]
    with _quiet():
        tokenizer = load_tokenizer("chat")
        trainer = _made(function, tokenizer, steps, batch)
        remark = _judged(trainer, steps, batch, machine)
        # Other numbers than those at hand, and a few real steps: what would fail later fails now.
        other = _made(function, tokenizer, 50, 4)
        _length(other, 50, 4)
        other.args.max_steps = 2
        try:
            other.train()
        except Exception as error:  # whatever a wrong value brings about
            raise Wrong(f"The training itself fails: {type(error).__name__}: {error}") from error
    return remark


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither the libraries' output nor their random numbers reach the learner's notebook."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        quiet_libraries(),
        random_state_kept(),
    ):
        yield


_TAUGHT = [row for row in _ROWS for _ in range(8)]


def _made(function: object, tokenizer: Any, steps: int, batch: int) -> SFTTrainer:
    """Call the learner's function with a tiny model, and check that it made a trainer."""
    rows = Dataset.from_list(
        [
            {
                "prompt": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": row["yoda_extra"]},
                ],
                "completion": [{"role": "assistant", "content": row["sentence"]}],
            }
            for row in _TAUGHT
        ]
    )
    options: dict[str, Any] = {"output_dir": tempfile.mkdtemp(), "report_to": "none"}
    options |= {"save_strategy": "no", "use_cpu": True, "bf16": False, "fp16": False}
    options |= {"gradient_checkpointing": False}
    trainer = call(function, _tiny(len(tokenizer)), tokenizer, rows, steps, batch, dict(options))
    if not isinstance(trainer, SFTTrainer):
        raise Wrong(
            f"An SFTTrainer is expected; this is {type(trainer).__name__}."
            + (" Return the trainer before any training." if "Output" in str(type(trainer)) else "")
        )
    for name, value in options.items():
        found = getattr(trainer.args, name)
        if found != value and not (value == "none" and found in ([], ["none"])):
            raise Wrong(
                f"`machine` says {name}={value!r}, and the trainer has {found!r}: hand the "
                "dictionary to SFTConfig as `**machine`."
            )
    for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _tiny(vocabulary: int) -> LlamaForCausalLM:
    """A model with the chat model's vocabulary and hardly any layers."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape, **heads))


def _length(trainer: SFTTrainer, steps: int, batch: int) -> None:
    """Check how many rows a trainer takes, in how many steps, and whether they are whole."""
    config = trainer.args
    if config.max_steps != steps:
        took = config.max_steps if config.max_steps > 0 else "as many as the epochs need"
        raise Wrong(f"Asked for {steps} steps, the training would take {took}.")
    seen = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if seen != batch:
        raise Wrong(f"Asked for {batch} sentences a step, it would take {seen}.")
    if config.packing:
        raise Wrong("With packing, a row holds several sentences: a step would take more.")
    if config.max_length is not None and config.max_length < 128:
        raise Wrong(f"max_length={config.max_length} may cut sentences: 128 or more, please.")
    if len(trainer.train_dataset) != len(_TAUGHT):
        raise Wrong(
            f"Of {len(_TAUGHT)} rows, the trainer has {len(trainer.train_dataset)}: give it all."
        )


def _judged(trainer: SFTTrainer, steps: int, batch: int, machine: str) -> str | None:
    """Check a trainer's adapter and settings; what can be said for a warning is returned."""
    if not isinstance(trainer.model, PeftModel):
        raise Wrong("This trains all weights: hand over a LoraConfig as `peft_config`.")
    factor = _adapter(trainer.model.peft_config["default"])
    _length(trainer, steps, batch)
    config = trainer.args
    if "adam" not in config.optim:
        raise Wrong(f"optim={config.optim.value!r} needs other rates: leave Adam, the default.")
    if config.get_warmup_steps(steps) > steps / 2:
        raise Wrong("The warm-up takes over half of the steps: too few are left at full rate.")
    every = config.logging_steps * (1 if config.logging_steps >= 1 else steps)
    if config.logging_strategy != "steps" or math.ceil(every) > 5:
        raise Wrong("Let it log every 5 steps or more often, to have a curve to look at.")
    _targets(trainer)
    return _rate(config.learning_rate, factor, steps, machine)


def _targets(trainer: SFTTrainer) -> None:
    """Check on a batch which tokens are trained on."""
    tokenizer = trainer.processing_class
    try:
        batch = next(iter(trainer.get_train_dataloader()))
    except Exception as error:  # likewise
        raise Wrong(f"No batch can be made: {type(error).__name__}: {error}") from error
    for labels in batch["labels"]:
        trained = tokenizer.decode(labels[labels >= 0])
        if SYSTEM in trained:
            raise Wrong("The prompt would be trained on.")
        if tokenizer.eos_token not in trained:
            raise Wrong("The EOS token would not be trained on, so the replies would not end.")


def _rate(rate: float, factor: float, steps: int, machine: str) -> str | None:
    """Check the learning rate for a machine; for a usual one that needs more steps, say so."""
    if rate < 0.999 * _USUAL / factor:
        raise Wrong(
            f"A learning rate of {rate:g} is low. TRL's default, 2e-5, is meant for training all "
            "weights; LoRA takes 1e-4 or more."
        )
    most = _MOST if machine == "cpu" else _MOST_ON_GPU
    if rate * factor > 1.001 * most:
        reason = "measured, " if machine == "cpu" else "not measured for models of this size, "
        raise Wrong(
            f"A learning rate of {rate:g} is high: with your adapter's factor alpha / r = "
            f"{factor:g}, up to {most / factor:g} is accepted here ({reason}see section 5)."
        )
    if machine == "cpu" and rate * factor < 0.999 * _LEAST:
        return (
            f"But note: a learning rate of {rate:g} is usual for LoRA, and needs more steps than "
            f"these {steps}. Expect a lower score, or take {_LEAST / factor:g} or more."
        )
    return None


def _adapter(given: LoraConfig) -> float:
    """Check an adapter's configuration; returns its factor."""
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
    ids = torch.arange(8)[None]
    with torch.no_grad():
        base = _tiny(32).eval()
        start = base(ids).logits
        layers = {
            name: (layer, layer.weight.clone())
            for name, layer in base.model.named_modules()
            if isinstance(layer, torch.nn.Linear)
        }
        model = get_peft_model(base, copy.deepcopy(given)).eval()
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
                "and the notebook compares with the base by switching the adapter off."
            )
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_" not in name:
                raise Wrong(f"This also trains {name}, which switching the adapter off keeps.")
    return factor


_COLUMNS = ("Yoda", "wanted", "before", "after", "right before", "right after")


@exercise(
    "yoda.evaluation",
    "Ask in exactly the form in which the model was trained: `as_chat(row)` holds it.",
    "Call `before` and `after` once each, with the same list of prompts.",
    "`pd.DataFrame` takes a dictionary of columns. A column of True and False comes from comparing "
    'two columns: `table["after"] == table["wanted"]`.',
)
def _evaluation(function: Callable[..., pd.DataFrame]) -> None:
    before, after = _Mock(_BEFORE), _Mock(_AFTER)
    given = _asked(function, before, after)
    for mock in (before, after):
        for prompt, row in zip(mock.asked, _ROWS, strict=True):
            roles = [turn["role"] for turn in prompt]
            if roles != ["system", "user"] or prompt[0]["content"] != SYSTEM:
                raise Wrong(
                    f"It was trained with the system prompt {SYSTEM!r} and one message of the "
                    f"user; you ask with {roles}, beginning {prompt[0]['content']!r:.60}."
                )
            if prompt[1]["content"] != row["yoda_extra"]:
                raise Wrong(
                    "It was trained on bare lines from the column `yoda_extra`, and you ask "
                    f"{prompt[1]['content']!r:.80}."
                )
    if not isinstance(given, pd.DataFrame):
        raise Wrong(f"A DataFrame is expected; this is {type(given).__name__}.")
    if missing := [name for name in _COLUMNS if name not in given]:
        raise Wrong(f"The table has no column {', '.join(map(repr, missing))}.")
    if len(given) != len(_ROWS):
        raise Wrong(f"The table has {len(given)} rows for {len(_ROWS)} sentences.")
    known = {
        "Yoda": [row["yoda_extra"] for row in _ROWS],
        "wanted": [row["sentence"] for row in _ROWS],
        "before": _BEFORE,
        "after": _AFTER,
    }
    for name, values in known.items():
        found = [str(value).strip() for value in given[name]]
        if found != values:
            raise Wrong(f"The column {name!r} should be {values[:2]} and so on, not {found[:2]}.")
    for name, replies in (("right before", _BEFORE), ("right after", _AFTER)):
        if given[name].dtype != bool:
            raise Wrong(
                f"The column {name!r} should hold True or False, not {given[name].iloc[0]!r:.40}."
            )
        for told, reply, row in zip(given[name], replies, _ROWS, strict=True):
            right = reply == row["sentence"]
            if told != right:
                raise Wrong(
                    f"{reply!r} for {row['sentence']!r} is {'right' if right else 'wrong'}, and "
                    f"your column {name!r} says {told}. A reply is right if both are equal."
                )
