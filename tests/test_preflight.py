"""The checks before training: each finds what it is for, and good trainers pass them all."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import peft
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import default_collate
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

import course_utils.preflight
from course_utils.errors import CourseError
from course_utils.hardware import Hardware
from course_utils.models._quantization import keep_weights_trainable, quantization_config
from course_utils.preflight import CHECKS, Check, PreflightFailed, Report, _weights, preflight

WORDS = "plum tree river stone lamp door bread salt cloud glass moss fern".split()
PAIRS = [(f"Say {word} twice", f"{word} {word}") for word in WORDS]
CHAT_PAIRS = [
    {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }
    for question, answer in PAIRS
]
MESSAGES = [{"messages": row["prompt"] + row["completion"]} for row in CHAT_PAIRS]
TEXTS = [{"text": f"{pair[0]}: {pair[1]}{'!' * place}"} for place, pair in enumerate(PAIRS)]
ALWAYS = [
    *("batches", "text and template", "supervised tokens", "prompt not supervised"),
    *("EOS supervised", "pad vs eos", "truncated", "labels in range", "trainable parameters"),
    *("learning rate", "dtype", "4-bit weights on a CPU", "loss and gradients", "plain loss"),
    *("saved and loaded", "batch and steps", "expected minutes"),
]
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])

# ChatML with the assistant's turns marked, as assistant_only_loss wants it; %s is the marked part.
_CHATML = (
    "{%% for message in messages %%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%% if message['role'] == 'assistant' %%}%s{%% else %%}"
    "{{ message['content'] + '<|im_end|>\n' }}{%% endif %%}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)
MARKED = _CHATML % (
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
)
MARKED_TOO_SHORT = _CHATML % (
    "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}"
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are faster on one thread, above all where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerBase:
    """The chat model's tokenizer: pad = eos = <|im_end|>."""
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def model(tiny_folder: Path) -> PreTrainedModel:
    """The tiny model in float32, which every machine computes in."""
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)


@pytest.fixture
def sft(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., SFTTrainer]:
    """Makes an SFTTrainer; what is not asked for otherwise is a good LoRA run."""

    def make(rows: Any = CHAT_PAIRS, **options: Any) -> SFTTrainer:
        parts = {"model": model, "processing_class": tokenizer, "peft_config": LORA}
        for name in (*parts, "data_collator", "optimizers"):
            if name in options:
                parts[name] = options.pop(name)
        settings = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "max_steps": 6,
            "activation_checkpointing": False,
        }
        data = Dataset.from_list(rows) if isinstance(rows, list) else rows
        return SFTTrainer(args=SFTConfig(**settings | options), train_dataset=data, **parts)

    return make


@pytest.fixture
def plain(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., Trainer]:
    """Makes a transformers Trainer for texts that end with the EOS token."""

    def make(rows: Any = None, **options: Any) -> Trainer:
        parts = {"model": model, "processing_class": tokenizer}
        for name in (*parts, "data_collator"):
            if name in options:
                parts[name] = options.pop(name)
        if rows is None:
            eos = tokenizer.eos_token
            rows = Dataset.from_list([tokenizer(row["text"] + eos) for row in TEXTS])
        if "data_collator" not in parts:
            parts["data_collator"] = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        settings = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "per_device_train_batch_size": 2,
            "max_steps": 6,
        }
        return Trainer(args=TrainingArguments(**settings | options), train_dataset=rows, **parts)

    return make


def _own_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """A padding token that no text has, among those that the model knows."""
    tokenizer.pad_token = "<empty_output>"


def _as_base(tokenizer: PreTrainedTokenizerBase) -> None:
    """A base model's tokenizer: no chat template."""
    tokenizer.chat_template = None


def _only(report: Report, name: str, status: str) -> Check:
    """The one row that is not a pass."""
    raised = {row.name: row for row in report.rows if row.status != "pass"}
    assert list(raised) == [name], str(report)
    row = raised[name]
    assert row.status == status
    assert re.fullmatch(r"[A-Z].{30,}\.", row.fix), row.fix
    assert report.ok == (status != "fail")
    return row


def _found(report: Report) -> dict[str, str]:
    return {row.name: row.found for row in report.rows}


def _assert_quiet(report: Report) -> None:
    assert [row for row in report.rows if row.status != "pass"] == [], str(report)
    assert report.not_judged == {}
    # Others are there where they have to do with the training: a GPU, packing, preferences.
    assert [row.name for row in report.rows if row.name in ALWAYS] == ALWAYS
    assert report.ok


# Good trainers


def test_quiet_on_lora_with_prompts_and_completions(sft: Callable[..., SFTTrainer]) -> None:
    """The course's usual training: nothing to say, and the facts are right."""
    trainer = sft(gradient_accumulation_steps=2)
    report = preflight(trainer)
    _assert_quiet(report)
    found = _found(report)
    assert "12 of 12 examples" in found["batches"]
    assert r"trained on plum plum<|im_end|>\n" in found["supervised tokens"]
    assert "LoRA in q_proj, v_proj" in found["trainable parameters"]
    assert "> 0 in 4 adapters" in found["loss and gradients"]
    assert "2 × 2 accumulated = 4 examples an update; 6 updates" in found["batch and steps"]
    minutes, seconds = re.fullmatch(
        r"about (\S+) minutes: 6 × 2 × (\S+) s, .*", found["expected minutes"]
    ).groups()
    assert float(minutes) == pytest.approx(6 * 2 * float(seconds) / 60, rel=0.1)


@pytest.mark.parametrize("prompts", ["texts", "several turns"])
def test_quiet_on_other_prompts(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase, prompts: str
) -> None:
    """Prompts as texts for a base model, and prompts that are conversations themselves."""
    if prompts == "texts":
        _as_base(tokenizer)
        rows = [{"prompt": f"{a}\n", "completion": b} for a, b in PAIRS]
    else:
        turns = MESSAGES[0]["messages"]
        rows = [{**row, "prompt": [*turns, *row["prompt"]]} for row in CHAT_PAIRS]
    _assert_quiet(preflight(sft(rows)))


def test_quiet_on_messages_with_assistant_only_loss(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Conversations of two rounds under a template that marks the assistant's turns."""
    tokenizer.chat_template = MARKED
    rows = [{"messages": row["messages"] + MESSAGES[0]["messages"]} for row in MESSAGES]
    report = preflight(sft(rows, assistant_only_loss=True, activation_checkpointing=True))
    _assert_quiet(report)
    assert "plum plum<|im_end|>plum plum<|im_end|>" in _found(report)["supervised tokens"]


def test_quiet_on_full_fine_tuning_of_texts(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A base model on plain text; the prompt check says that it cannot tell."""
    _as_base(tokenizer)
    report = preflight(sft(TEXTS, peft_config=None, learning_rate=1e-4))
    _assert_quiet(report)
    assert _found(report)["prompt not supervised"] == "cannot tell: the data has one text"


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packing(sft: Callable[..., SFTTrainer], strategy: str) -> None:
    """Rows of several texts are taken apart, or known to be cut anywhere."""
    rows = [{"messages": row["messages"]} for row in MESSAGES]
    trainer = sft(rows, packing=True, packing_strategy=strategy, max_length=100)
    assert len(trainer.train_dataset) < len(rows)
    report = preflight(trainer)
    if strategy == "wrapped":
        assert "attend to those before them" in _only(report, "documents apart", "warn").found
        return
    _assert_quiet(report)
    assert "of 12 examples" in _found(report)["EOS supervised"]


def test_quiet_on_a_plain_trainer(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """transformers' own Trainer and collator, with padding apart from the EOS token."""
    _as_base(tokenizer)
    _own_padding(tokenizer)
    _assert_quiet(preflight(plain()))


def test_quiet_on_a_list_of_tensors(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A training set that is no dataset of the library's, with labels in it, and no hurry."""
    _as_base(tokenizer)
    rows = [{n: torch.tensor(ids) for n, ids in row.items()} for row in _tokenized(tokenizer)]
    collator = DataCollatorForSeq2Seq(tokenizer)
    _assert_quiet(preflight(plain(rows, data_collator=collator, num_train_epochs=2, max_steps=-1)))


def test_blocks_of_text(plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase) -> None:
    """Blocks of joined texts end anywhere; the EOS tokens inside may be hidden, or forgotten."""
    _as_base(tokenizer)

    def blocks(between: str) -> Dataset:
        ids = tokenizer(between.join(row["text"] for row in TEXTS * 6))["input_ids"]
        rows = [{"input_ids": ids[i : i + 64]} for i in range(0, len(ids), 64)]
        return Dataset.from_list(rows)

    _only(preflight(plain(blocks(tokenizer.eos_token))), "pad vs eos", "fail")
    _own_padding(tokenizer)
    _assert_quiet(preflight(plain(blocks(tokenizer.eos_token))))
    _only(preflight(plain(blocks("\n"))), "EOS supervised", "warn")


def test_quiet_on_a_stream(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A dataset without a length is looked at from its beginning."""
    report = preflight(sft(Dataset.from_list(CHAT_PAIRS).to_iterable_dataset()), examples=5)
    _assert_quiet(report)
    assert _found(report)["batches"].startswith("5 examples looked at")


@pytest.fixture
def four_bit(tiny_folder: Path, tmp_path: Path) -> PreTrainedModel:
    """A tiny model in nf4, of sizes that bitsandbytes can repack."""
    config = AutoConfig.from_pretrained(tiny_folder, hidden_size=64, head_dim=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    return AutoModelForCausalLM.from_pretrained(
        tmp_path / "wide",
        dtype=torch.float32,
        quantization_config=quantization_config("nf4", torch.float32),
        device_map={"": "cpu"},
    )


def test_quiet_on_four_bits(sft: Callable[..., SFTTrainer], four_bit: PreTrainedModel) -> None:
    """QLoRA on a CPU, with the weights kept trainable."""
    keep_weights_trainable(four_bit)
    _assert_quiet(preflight(sft(model=four_bit)))


def test_quiet_before_a_second_training(sft: Callable[..., SFTTrainer]) -> None:
    """A first training leaves an optimizer at the end of its schedule; the next starts anew."""
    trainer = sft(max_steps=1)
    trainer.train()
    _assert_quiet(preflight(trainer))


# Nothing changes


def _state(trainer: Trainer) -> dict[str, Any]:
    """What a check might change."""
    return {
        "weights": {n: p.detach().clone() for n, p in trainer.model.named_parameters()},
        "gradients": {n: p.grad for n, p in trainer.model.named_parameters()},
        "thawed": {n: p.requires_grad for n, p in trainer.model.named_parameters()},
        "buffers": {n: b.clone() for n, b in trainer.model.named_buffers()},
        "modes": {n: m.training for n, m in trainer.model.named_modules()},
        "hooks": {n: dict(m._forward_hooks) for n, m in trainer.model.named_modules()},
        "layers": {
            n: getattr(m, "gradient_checkpointing", None) for n, m in trainer.model.named_modules()
        },
        "random": torch.get_rng_state(),
        "trainer": dict(vars(trainer)),
        "state": str(trainer.state),
        "metrics": str(trainer._metrics),
        "loaders": len(trainer.accelerator._dataloaders),
        "arguments": trainer.args.to_dict(),
    }


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return first is second or first == second


def test_random_states_are_put_back(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Python's, numpy's and torch's, though the collator draws from all three."""
    _as_base(tokenizer)
    drawn = []
    own = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        drawn.append((random.random(), np.random.rand(), torch.rand(1)))
        return own(rows)

    def states() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ]

    trainer = plain(data_collator=collate)
    before = states()
    preflight(trainer)
    assert drawn
    assert states() == before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_changes(
    sft: Callable[..., SFTTrainer], tmp_path: Path, checkpointing: bool
) -> None:
    """Weights, gradients, modes, hooks, random state, the trainer and the disk stay as they are."""
    trainer = sft(activation_checkpointing=checkpointing)
    trainer.model.eval()
    first = next(p for p in trainer.model.parameters() if p.requires_grad)
    first.grad = torch.ones_like(first)
    before, files = _state(trainer), sorted(tmp_path.rglob("*"))
    preflight(trainer)
    after = _state(trainer)
    assert [name for name in before if not _same(before[name], after[name])] == []
    assert torch.equal(first.grad, torch.ones_like(first))
    assert sorted(tmp_path.rglob("*")) == files


def test_training_is_the_same_with_and_without(
    sft: Callable[..., SFTTrainer], tiny_folder: Path
) -> None:
    """Same batches in the same order, same dropout, same losses, same weights."""
    losses, weights = [], []
    dropping = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    for checked in (False, True):
        fresh = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        trainer = sft(model=fresh, peft_config=dropping, logging_steps=1, max_steps=3)
        if checked:
            preflight(trainer)
        trainer.train()
        log = trainer.state.log_history
        losses.append([(row["loss"], row["num_tokens"]) for row in log if "loss" in row])
        weights.append({n: p.detach() for n, p in trainer.model.named_parameters()})
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert _same(weights[0], weights[1])


# Broken trainers: the data


def test_a_collator_that_fails(plain: Callable[..., Trainer]) -> None:
    """Texts of different lengths cannot be stacked without padding; nothing else is judged."""
    report = preflight(plain(data_collator=default_collate))
    assert "Error" in _only(report, "batches", "fail").found
    assert "loss and gradients" in report.not_judged


def test_an_empty_training_set(sft: Callable[..., SFTTrainer]) -> None:
    """TRL drops every example whose prompt alone fills max_length."""
    report = preflight(sft(max_length=8))
    assert "is empty" in _only(report, "batches", "fail").found


def test_batches_without_labels(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A collator that only pads makes no labels."""
    from transformers import DataCollatorWithPadding

    report = preflight(plain(data_collator=DataCollatorWithPadding(tokenizer)))
    assert "no labels" in _only(report, "batches", "fail").found


def test_texts_without_the_template(sft: Callable[..., SFTTrainer]) -> None:
    """Plain prompts for a chat model: it would learn to do without its template."""
    report = preflight(sft([{"prompt": f"{a}\n", "completion": b} for a, b in PAIRS]))
    row = _only(report, "text and template", "warn")
    assert (
        r"12 of 12 examples lack the chat template's <|im_end|>\n<|im_start|>assistant" in row.found
    )


def test_conversations_in_another_template(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Conversations that were tokenized with something else than the model's template."""
    rows = []
    for row in CHAT_PAIRS:
        question, answer = (row[name][0]["content"] for name in ("prompt", "completion"))
        ids = tokenizer(f"USER: {question} ASSISTANT: {answer}{tokenizer.eos_token}")["input_ids"]
        labels = [-100 if place < 6 else token for place, token in enumerate(ids)]
        rows.append({**row, "input_ids": ids, "labels": labels})
    _only(preflight(sft(rows)), "text and template", "fail")


def test_two_beginnings(plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase) -> None:
    """A rendered template, tokenized by a tokenizer that adds its own beginning."""
    _own_padding(tokenizer)
    rows = [tokenizer(f"{tokenizer.bos_token * 2}{row['text']}<|im_end|>") for row in TEXTS]
    row = _only(preflight(plain(Dataset.from_list(rows))), "text and template", "warn")
    assert "twice" in row.found


def _tokenized(tokenizer: PreTrainedTokenizerBase, *, eos: bool = True) -> list[dict[str, Any]]:
    rows = [tokenizer(row["text"] + eos * tokenizer.eos_token) for row in TEXTS]
    return [{"input_ids": row["input_ids"], "labels": list(row["input_ids"])} for row in rows]


def test_nothing_supervised_in_some(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Two examples whose labels are all masked."""
    _as_base(tokenizer)
    rows = _tokenized(tokenizer)
    for row in rows[:2]:
        row["labels"] = [-100] * len(row["labels"])
    collator = DataCollatorForSeq2Seq(tokenizer)
    report = preflight(plain(Dataset.from_list(rows), data_collator=collator))
    assert "2 of 12" in _only(report, "supervised tokens", "fail").found


def test_nothing_supervised_at_all(sft: Callable[..., SFTTrainer]) -> None:
    """All labels masked: the step is not tried, and the report says why."""
    rows = [{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * 4
    report = preflight(sft(rows, max_length=None))
    assert {r.name for r in report.rows if r.status == "fail"} == {"supervised tokens"}
    assert report.not_judged["loss and gradients"] == "no token is supervised"


@pytest.mark.parametrize("kind", ["pairs", "messages", "mask"])
def test_prompts_supervised(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase, kind: str
) -> None:
    """Where the data says what the prompt is, and its tokens are trained on all the same."""
    if kind == "pairs":
        trainer = sft(completion_only_loss=False)
    elif kind == "messages":
        trainer = sft(MESSAGES)
    else:
        _as_base(tokenizer)
        rows = _tokenized(tokenizer)
        for row in rows:
            row["completion_mask"] = [int(place > 3) for place in range(len(row["labels"]))]
        trainer = sft(rows)
    row = _only(preflight(trainer), "prompt not supervised", "warn")
    assert row.found.startswith("in 12 of 12 examples")
    assert ("assistant_only_loss" in row.fix) == (kind == "messages")


def test_the_end_is_not_marked(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A template whose {% generation %} ends before the end-of-turn token."""
    tokenizer.chat_template = MARKED_TOO_SHORT
    report = preflight(sft(MESSAGES, assistant_only_loss=True))
    assert "12 of 12" in _only(report, "EOS supervised", "fail").found


def test_some_texts_do_not_end(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Tokenized by hand, and the EOS token forgotten in some."""
    _as_base(tokenizer)
    rows = _tokenized(tokenizer)[:9] + _tokenized(tokenizer, eos=False)[9:]
    row = _only(preflight(sft(rows)), "EOS supervised", "warn")
    assert "3 of 12" in row.found


def test_padding_hides_the_end(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """transformers' collator masks every padding token, the EOS token with it if it is the same."""
    _as_base(tokenizer)
    report = preflight(plain())
    assert "12 of 12" in _only(report, "pad vs eos", "fail").found
    assert report.not_judged == {"EOS supervised": "see pad vs eos"}


def test_padding_is_trained_on(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A collator of one's own that copies the ids, padding included."""
    _as_base(tokenizer)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = tokenizer.pad(rows, return_tensors="pt")
        return {**batch, "labels": batch["input_ids"].clone()}

    row = _only(preflight(plain(data_collator=collate)), "pad vs eos", "fail")
    assert "padding tokens are trained on" in row.found


def test_labels_are_shifted_twice(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A collator that shifts what the model shifts again."""
    _as_base(tokenizer)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = tokenizer.pad(rows, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {**batch, "labels": torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)}

    row = _only(preflight(plain(data_collator=collate)), "plain loss", "fail")
    assert "the token after the next" in row.found


def test_truncation(sft: Callable[..., SFTTrainer]) -> None:
    """Long completions that are cut off, and prompts that fill max_length and are dropped."""
    long = {**CHAT_PAIRS[0], "completion": [{"role": "assistant", "content": "plum " * 60}]}
    lost = {**CHAT_PAIRS[0], "prompt": [{"role": "user", "content": "plum " * 90}]}
    row = _only(preflight(sft([*CHAT_PAIRS, long, lost], max_length=60)), "truncated", "warn")
    assert "1 of 13 examples are cut off at 60 tokens; 1 more were dropped" in row.found


def test_longer_than_the_model_reads(
    sft: Callable[..., SFTTrainer], model: PreTrainedModel
) -> None:
    """Nothing is cut off, and the model has never seen positions that far."""
    model.config.max_position_embeddings = 32
    row = _only(preflight(sft(max_length=None)), "truncated", "warn")
    assert "made for 32" in row.found


def test_a_token_that_the_model_lacks(
    plain: Callable[..., Trainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A padding token that was added without resizing the embeddings."""
    _as_base(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    report = preflight(plain())
    assert str(tokenizer.pad_token_id) in _only(report, "labels in range", "fail").found
    assert report.not_judged["loss and gradients"] == "a token is out of range"


def test_a_wrong_mark_for_ignored_labels(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase
) -> None:
    """-1 is a label as well, and none that exists."""
    _as_base(tokenizer)
    rows = _tokenized(tokenizer)
    for row in rows:
        row["labels"][:3] = [-1] * 3
    _only(preflight(sft(rows)), "labels in range", "fail")


# Broken trainers: the model and the optimizer


def test_nothing_trainable(
    sft: Callable[..., SFTTrainer], model: PreTrainedModel, tmp_path: Path
) -> None:
    """An adapter that was loaded for inference, and a model that is frozen."""
    adapted = get_peft_model(model, LORA)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(adapted.unload(), tmp_path / "adapter")
    report = preflight(sft(model=loaded, peft_config=None))
    assert "is_trainable=True" in _only(report, "trainable parameters", "fail").fix
    assert report.not_judged["loss and gradients"] == "no parameter is trainable"


def test_a_frozen_model(sft: Callable[..., SFTTrainer], model: PreTrainedModel) -> None:
    """No adapter, and every weight frozen."""
    report = preflight(sft(model=model.requires_grad_(False), peft_config=None, learning_rate=1e-4))
    assert "peft_config" in _only(report, "trainable parameters", "fail").fix


def test_an_optimizer_for_something_else(
    sft: Callable[..., SFTTrainer], model: PreTrainedModel
) -> None:
    """An optimizer that was made before the adapter."""
    early = torch.optim.AdamW(model.parameters(), lr=1e-3)
    report = preflight(sft(optimizers=(early, None)))
    assert "does not hold 8 of 8" in _only(report, "trainable parameters", "fail").found


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"learning_rate": 0.0}, "fail", "nothing would change"),
        ({"warmup_steps": 100}, "fail", "100 warm-up steps, but the run has 6"),
        ({"warmup_steps": 8}, "warn", "8 warm-up steps, but the run has 6"),
        ({"learning_rate": 1e-6}, "warn", "1.0e-06 at its highest"),
        ({"learning_rate": 0.5}, "warn", "5.0e-01 at its highest"),
        ({"learning_rate": 5e-3, "peft_config": None}, "warn", "5.0e-03 at its highest"),
    ],
)
def test_learning_rates(
    sft: Callable[..., SFTTrainer], options: dict[str, Any], status: str, words: str
) -> None:
    """None, a warm-up that outlasts the run, and rates for another kind of training."""
    assert words in _only(preflight(sft(**options)), "learning rate", status).found


@pytest.mark.parametrize(
    ("rate", "usual"), [(2.5e-5, False), (4e-5, True), (8e-3, True), (1.2e-2, False)]
)
def test_what_rates_lora_takes(sft: Callable[..., SFTTrainer], rate: float, usual: bool) -> None:
    """From 3e-5 to 1e-2 nothing is said."""
    row = next(r for r in preflight(sft(learning_rate=rate)).rows if r.name == "learning rate")
    assert row.status == ("pass" if usual else "warn")


def test_a_schedule_that_cannot_be_made(sft: Callable[..., SFTTrainer]) -> None:
    """A schedule that asks for settings which are not there."""
    report = preflight(sft(lr_scheduler_type="warmup_stable_decay"))
    assert "cannot be made" in _only(report, "learning rate", "fail").found


def test_a_schedule_of_nothing(sft: Callable[..., SFTTrainer]) -> None:
    """A schedule of one's own that falls to 0 at once."""
    trainer = sft(max_steps=40)
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda step: float(step < 2)
    )
    row = _only(preflight(trainer), "learning rate", "fail")
    assert "about 0 for 95% of the run" in row.found


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that does not compute in bfloat16."""
    monkeypatch.setattr(_weights, "detect", lambda: Hardware(cpu_name="old"))


@pytest.mark.usefixtures("old_cpu")
def test_bfloat16_where_it_is_emulated(sft: Callable[..., SFTTrainer], tiny_folder: Path) -> None:
    """Weights or computation in bfloat16 on a CPU without it; float32 is fine."""
    _assert_quiet(preflight(sft()))
    row = _only(preflight(sft(bf16=True)), "dtype", "warn")
    assert "torch.float32" in row.fix
    half = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    _only(preflight(sft(model=half)), "dtype", "warn")


def test_training_float16_weights(sft: Callable[..., SFTTrainer], tiny_folder: Path) -> None:
    """All weights in float16, and trained."""
    half = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float16)
    report = preflight(sft(model=half, peft_config=None, learning_rate=1e-4))
    _only(report, "dtype", "fail")


def test_fp16_and_the_bfloat16_adapters_of_a_quantized_model(
    sft: Callable[..., SFTTrainer], four_bit: PreTrainedModel
) -> None:
    """TRL casts them, and a gradient scaler refuses them; in float32 they are fine."""
    trainer = sft(model=four_bit)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.bfloat16}
    trainer.args.fp16 = True  # which no CPU's arguments accept
    (row,) = [row for row in preflight(trainer).rows if row.name == "dtype"]
    assert row.status == "fail"
    assert "first step" in row.found
    assert ".float()" in row.fix
    for parameter in trained:
        parameter.data = parameter.data.float()
    (row,) = [row for row in preflight(trainer).rows if row.name == "dtype"]
    assert row.status != "fail"


@pytest.mark.parametrize("state", ["open", "repacked"])
def test_four_bit_weights_on_a_cpu(
    sft: Callable[..., SFTTrainer], four_bit: PreTrainedModel, state: str
) -> None:
    """bitsandbytes' trap, open and shut: layers that will be repacked, and that have been."""
    layers = [m for m in four_bit.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    if state == "open":
        for layer in layers:
            layer.support_avx512bf16_for_cpu = True
    elif not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("the trap needs a CPU with avx512_bf16")
    else:
        with torch.no_grad():
            four_bit.eval()(torch.tensor([[5, 6, 7]]))
    trainer = sft(model=four_bit)
    status = {"open": "warn", "repacked": "fail"}[state]
    row = _only(preflight(trainer), "4-bit weights on a CPU", status)
    assert f"{len(layers)} of {len(layers)}" in row.found
    assert "keep_weights_trainable" in row.fix


def test_a_loss_that_is_nan(sft: Callable[..., SFTTrainer]) -> None:
    """One weight that is not a number."""
    trainer = sft()
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[:] = float("nan")
    assert "the loss is nan" in _only(preflight(trainer), "loss and gradients", "fail").found


def test_an_adapter_without_a_gradient(sft: Callable[..., SFTTrainer]) -> None:
    """Both factors of one adapter are zero: neither ever gets a gradient."""
    trainer = sft()
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "layers.1.self_attn.v_proj.lora_" in name:
                parameter.zero_()
    row = _only(preflight(trainer), "loss and gradients", "fail")
    assert "no gradient in 1 of 4 parts" in row.found
    assert "layers.1.self_attn.v_proj [default]" in row.found


def test_weights_beside_the_loss(sft: Callable[..., SFTTrainer], model: PreTrainedModel) -> None:
    """A trainable tensor that takes no part in the forward."""
    model.model.layers[0].spare = torch.nn.Parameter(torch.ones(2))
    report = preflight(sft(model=model, peft_config=None, learning_rate=1e-4))
    raised = {row.name: row.found for row in report.rows if row.status != "pass"}
    assert list(raised) == ["loss and gradients", "saved and loaded"]
    assert all("spare" in found for found in raised.values())


def test_a_step_that_raises(sft: Callable[..., SFTTrainer]) -> None:
    """The error that training would end with is shown, and everything is put back."""

    class Broken(SFTTrainer):
        def compute_loss(self, *args: Any, **options: Any) -> torch.Tensor:
            raise KeyError("<weights>")

    trainer = sft()
    trainer.__class__ = Broken
    trainer.model.eval()
    report = preflight(trainer)
    assert "KeyError" in _only(report, "loss and gradients", "fail").found
    assert report.not_judged == dict.fromkeys(
        ["plain loss", "expected minutes"], "the step did not run"
    )
    assert not any(module.training for module in trainer.model.modules())
    assert "&lt;weights&gt;" in report._repr_html_()
    assert "<weights>" not in report._repr_html_()


def test_a_loss_that_nothing_leads_to(sft: Callable[..., SFTTrainer]) -> None:
    """A loss that was computed without a graph."""

    class Broken(SFTTrainer):
        @torch.no_grad()
        def compute_loss(self, *args: Any, **options: Any) -> torch.Tensor:
            return super().compute_loss(*args, **options)

    trainer = sft()
    trainer.__class__ = Broken
    row = _only(preflight(trainer), "loss and gradients", "fail")
    assert "takes part in the loss" in row.fix


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"max_steps": 0}, "fail", "no steps"),
        ({"gradient_accumulation_steps": 8}, "warn", "16 examples an update"),
    ],
)
def test_steps(
    sft: Callable[..., SFTTrainer], options: dict[str, Any], status: str, words: str
) -> None:
    """A run without steps, and an update that takes more examples than there are."""
    assert words in _only(preflight(sft(**options)), "batch and steps", status).found


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"per_device_train_batch_size": 5}, "9 updates of about"),  # 5, 5 and 2, three times
        ({"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}, "6 updates"),
        ({"per_device_train_batch_size": 5, "dataloader_drop_last": True}, "6 updates"),
        ({"per_device_train_batch_size": 2}, "18 updates"),
    ],
)
def test_the_passes_are_those_that_the_trainer_counts(
    sft: Callable[..., SFTTrainer], options: dict[str, Any], passes: str
) -> None:
    """Three epochs are three times the examples, though a pass's last update may take fewer."""
    trainer = sft(max_steps=-1, num_train_epochs=3, **options)
    found = _found(preflight(trainer))["batch and steps"]
    assert f"; {passes}" in found
    assert found.endswith(", 3 × the 12 examples")


def test_half_a_pass_is_told(sft: Callable[..., SFTTrainer]) -> None:
    """Steps that do not reach through the data."""
    found = _found(preflight(sft(max_steps=3)))["batch and steps"]
    assert found.endswith(", 0.5 × the 12 examples")


# The report


def test_strict_raises(sft: Callable[..., SFTTrainer]) -> None:
    """A failed check is an error that says what to do; a warning is not."""
    with pytest.raises(PreflightFailed, match="Set learning_rate") as raised:
        preflight(sft(learning_rate=0.0), strict=True)
    assert isinstance(raised.value, CourseError)
    assert not raised.value.report.ok
    assert preflight(sft(completion_only_loss=False), strict=True).ok


def test_the_tables() -> None:
    """Plain and HTML: a word and a symbol for each status, and texts stay texts."""
    rows = [Check("a", "pass", "<b>", ""), Check("b", "fail", "x" * 300, "Do <i>."), *_warnings()]
    report = Report(rows, {"d": "no <u>"})
    page, text = report._repr_html_(), str(report)
    for word in ("✓ pass", "! warn", "✗ fail"):
        assert word in page
        assert word in text
    assert not re.search("<[biu]>", page)
    assert "&lt;b&gt;" in page
    assert "&lt;u&gt;" in page
    assert "→ Do <i>." in text
    assert text.endswith("3 checks; fail: b; warn: c.")
    assert "Not judged: d (no <u>)." in text


def _warnings() -> list[Check]:
    return [Check("c", "warn", "found", "Fix.")]


def test_a_check_is_easily_added(
    sft: Callable[..., SFTTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function in `CHECKS` is a row of the report."""
    check = course_utils.preflight.Finding("warn", "little memory", "Buy some.")
    monkeypatch.setitem(CHECKS, "one of my own", lambda evidence: check)
    assert preflight(sft()).rows[-1] == Check("one of my own", *check)


def test_the_module_can_be_called(sft: Callable[..., SFTTrainer]) -> None:
    """Python binds `course_utils.preflight` to the module, whatever else has that name."""
    assert course_utils.preflight(sft(), examples=2).ok
    with pytest.raises(ValueError, match="examples is 0"):
        preflight(sft(), examples=0)


@pytest.mark.parametrize("name", ["llama3", "gemma", "qwen3", "phi3", "deepseek_r1_distill"])
def test_marks_of_other_templates(
    sft: Callable[..., SFTTrainer], tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """What tells a template from plain text is found in other models' templates too."""
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    tokenizer.chat_template = path.read_text()
    found = _found(preflight(sft(), examples=2))
    assert found["text and template"].startswith("the chat template's ")
    assert found["prompt not supervised"] == "none in the 2 examples that name a prompt"


@pytest.mark.parametrize(
    ("usable", "status", "fix"),
    [
        (4000, "pass", ""),
        (None, "warn", "watch the first steps"),
        (-25, "fail", "The cheapest change"),
    ],
)
def test_memory_is_held_against_a_gpu(
    sft: Callable[..., SFTTrainer], usable: int | None, status: str, fix: str
) -> None:
    """Enough, hardly enough, and not enough: then with the cheapest change that is."""
    from course_utils.memory import Gpu, predict

    long = [{"prompt": "one " * 200, "completion": " two" * 50}] * 8
    trainer = sft(long, per_device_train_batch_size=8, gradient_checkpointing=False)
    if usable is None or usable < 0:  # a little more than it needs, or less
        needed = int(predict(trainer, "a100-80gb").peak_reserved_mb / 1.048576)
        usable = needed + (usable or 2)
    gpu = Gpu("a GPU", usable + 100, (8, 0), usable + 100, 100)
    row = next(row for row in preflight(trainer, gpu=gpu).rows if row.name == "memory")
    assert row.status == status, row
    assert "MB" in row.found
    assert fix in row.fix


def test_memory_that_cannot_be_told_is_not_judged(sft: Callable[..., SFTTrainer]) -> None:
    """With the reason; an unknown GPU is an error."""
    from course_utils.errors import UnknownName

    trainer = sft()
    trainer.args.torch_compile = True
    report = preflight(trainer, gpu="t4")
    assert "torch_compile" in report.not_judged["memory"]
    with pytest.raises(UnknownName, match="t4"):
        preflight(sft(), gpu="t5")
