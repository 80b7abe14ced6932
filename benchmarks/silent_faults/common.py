"""What the faults and the correct set-ups are made of: small models, tokenizers, trainers."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from course_utils.models._loading import load_tokenizer

WORDS = "plum tree river stone lamp door bread salt cloud glass moss fern".split()
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "per_device_train_batch_size": 2,
    "max_steps": 6,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
}

FAULTS: dict[str, Fault] = {}
HEALTHY: dict[str, Healthy] = {}


@dataclass(frozen=True)
class Fault:
    """A training that goes wrong without an error.

    Attributes:
        name: short, in words joined by hyphens; unique.
        kind: the heading that it stands under on the site.
        issues: the public reports that it was rebuilt from, as `owner/name#number`.
        story: one or two sentences: what somebody did, and what they got.
        make: makes the trainer with the fault.
        mended: makes the same trainer with the fix applied that the report names; None where the
            fix is not a change of the training (a smaller claim: "watch out").
        rows: the checks that may name it; a raise of any other is not counted as found.
        proof: looks at the trainer of `make` and says in a sentence what is wrong in it, measured;
            raises AssertionError where the fault is not there.
    """

    name: str
    kind: str
    issues: tuple[str, ...]
    story: str
    make: Callable[[], Trainer]
    mended: Callable[[], Trainer] | None
    rows: tuple[str, ...]
    proof: Callable[[Trainer], str]


@dataclass(frozen=True)
class Healthy:
    """A correct training, usual or not, of which nothing may be said."""

    name: str
    make: Callable[[], Trainer]


def add(fault: Fault) -> None:
    """Enter a fault; names are unique."""
    assert fault.name not in FAULTS, fault.name
    FAULTS[fault.name] = fault


def enter_fault(name: str, issues: str, story: str, *, rows: str, **parts: Any) -> None:
    """Enter a fault; issues stand apart by blanks, rows by semicolons."""
    names = tuple(rows.split("; "))
    add(Fault(name, issues=tuple(issues.split()), story=story, rows=names, **parts))


def add_healthy(name: str, make: Callable[[], Trainer]) -> None:
    """Enter a correct set-up; names are unique."""
    assert name not in HEALTHY, name
    HEALTHY[name] = Healthy(name, make)


def folder() -> str:
    """A new, empty folder."""
    return tempfile.mkdtemp(prefix="silent-", dir=os.environ.get("SILENT_FAULTS_TMP"))


def chat_tokenizer() -> PreTrainedTokenizerBase:
    """The embedded chat model's tokenizer: ChatML, pad = eos = <|im_end|>."""
    return load_tokenizer("chat")


def base_tokenizer() -> PreTrainedTokenizerBase:
    """The same without a chat template, with a padding token of its own."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = None
    tokenizer.pad_token = "<empty_output>"
    return tokenizer


# The end of a turn and, where there is one, the beginning of a text under TRL's templates.
_ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "phi3_5": "<|end|>",
}
_BEGINNINGS = {
    **dict.fromkeys(("gemma", "gemma3", "gemma4"), "<bos>"),
    **dict.fromkeys(("deepseekv3", "deepseek_r1_distill"), "<｜begin▁of▁sentence｜>"),
    **dict.fromkeys(("cohere", "cohere2"), "<BOS_TOKEN>"),
    **dict.fromkeys(("gptoss", "lfm2", "lfm2_v2"), "<|startoftext|>"),
    "llama3": "<|begin_of_text|>",
}
_MARKS = (
    r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>"
    r"|<(?:start_of_turn|end_of_turn|bos|BOS_TOKEN|turn\||\|turn|eos)>"
)


def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    """The embedded tokenizer with a template that TRL ships, and the special tokens of that.

    Args:
        template: a file's name in `trl/chat_templates`, without its ending, such as `"qwen3"`.
    """
    tokenizer = chat_tokenizer()
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    end = _ENDS.get(template, "<|im_end|>")
    beginning = _BEGINNINGS.get(template)
    found = set(re.findall(_MARKS, text)) | {end} | ({beginning} if beginning else set())
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(found)})
    tokenizer.chat_template = text
    tokenizer.eos_token = end
    if beginning:
        tokenizer.bos_token = beginning
    tokenizer.add_special_tokens({"pad_token": "<pad-own>"})
    return tokenizer


def tiny(
    tokenizer: PreTrainedTokenizerBase,
    cls: type[PreTrainedModel] = LlamaForCausalLM,
    config: Any = LlamaConfig,
    **options: Any,
) -> PreTrainedModel:
    """A model of two layers with random weights (seed 0), by default a Llama."""
    torch.manual_seed(0)
    usual: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return cls(config(**(usual | options)))


def saved(model: PreTrainedModel) -> str:
    """A folder with a model, for `from_pretrained`."""
    where = folder()
    model.save_pretrained(where)
    return where


def lora(**options: Any) -> LoraConfig:
    """LoRA of rank 4 on the queries and values."""
    usual = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**(usual | options))


def _data(rows: Any) -> Any:
    return Dataset.from_list(rows) if isinstance(rows, list) else rows


def sft(
    rows: Any,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cls: type[SFTTrainer] = SFTTrainer,
    **options: Any,
) -> SFTTrainer:
    """An SFTTrainer of a few steps; what is no argument of SFTConfig goes to the trainer."""
    parts = {name: options.pop(name) for name in _PARTS if name in options}
    settings = {
        **SETTINGS,
        "output_dir": folder(),
        "bf16": False,
        "learning_rate": 1e-3 if "peft_config" in parts else 1e-4,
        "gradient_checkpointing": False,
    }
    args = SFTConfig(**(settings | options))
    return cls(
        model=model, processing_class=tokenizer, args=args, train_dataset=_data(rows), **parts
    )


_PARTS = (
    "peft_config",
    "data_collator",
    "eval_dataset",
    "formatting_func",
    "optimizers",
    "callbacks",
    "compute_loss_func",
    "compute_metrics",
)


def plain(
    rows: Any,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cls: type[Trainer] = Trainer,
    arguments: type[TrainingArguments] = TrainingArguments,
    **options: Any,
) -> Trainer:
    """A Trainer of transformers of a few steps; causal language modelling unless told otherwise."""
    parts = {name: options.pop(name) for name in _PARTS if name in options}
    parts.setdefault("data_collator", DataCollatorForLanguageModeling(tokenizer, mlm=False))
    settings = {**SETTINGS, "output_dir": folder(), "learning_rate": 1e-4}
    args = arguments(**(settings | options))
    return cls(
        model=model, processing_class=tokenizer, args=args, train_dataset=_data(rows), **parts
    )


def pairs(count: int = 12) -> list[dict[str, Any]]:
    """Prompts and completions as messages, no two alike."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Say {word} twice, please, number {row}"}],
            "completion": [{"role": "assistant", "content": f"{word} {word}"}],
        }
        for row, word in enumerate((WORDS * (count // 12 + 1))[:count])
    ]


def chats(count: int = 12, turns: int = 2) -> list[dict[str, Any]]:
    """Conversations of several rounds, no two alike."""
    rows = []
    for row in range(count):
        messages = []
        for turn in range(turns):
            word = WORDS[(row + turn) % len(WORDS)]
            messages += [
                {"role": "user", "content": f"Say {word} twice, number {row}"},
                {"role": "assistant", "content": f"{word} {word}"},
            ]
        rows.append({"messages": messages})
    return rows


def tokenized(tokenizer: PreTrainedTokenizerBase, count: int = 12) -> list[dict[str, Any]]:
    """Texts that end with the EOS token, tokenized."""
    words = (WORDS * (count // 12 + 1))[:count]
    texts = [f"Say {word} twice, number {row}: {word} {word}" for row, word in enumerate(words)]
    return [dict(tokenizer(text + tokenizer.eos_token)) for text in texts]


def rendered(trainer: Trainer, row: int = 0) -> str:
    """A row of the training set as text, special tokens included."""
    return trainer.processing_class.decode(trainer.train_dataset[row]["input_ids"])


def first_batch(trainer: Trainer) -> Mapping[str, Any]:
    """The first batch of the trainer's own loader."""
    return next(iter(trainer.get_train_dataloader()))
