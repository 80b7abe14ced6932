"""Checks before a training run, on the trainer's own batches; what they find, and the cure.

`print(preflight(trainer))` before `trainer.train()`. Introduced in notebook 03. A further check is
a function in `CHECKS`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import html
import itertools
import json
import math
import random
import re
import sys
import textwrap
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer
from trl import SFTTrainer, is_conversational

from course_utils import checks
from course_utils.display import visible
from course_utils.errors import CourseError
from course_utils.hardware import detect, pick_dtype
from course_utils.masks import IGNORED
from course_utils.memory import Gpu, Prediction, predict, this_gpu, usable_bytes, ways_to_fit
from course_utils.memory import gpu as gpu_by_name

PASS, WARN, FAIL = "pass", "warn", "fail"
_SYMBOLS = {PASS: "✓", WARN: "!", FAIL: "✗"}
_NOT_JUDGED = ""

_EXAMPLES = 64
_TRUNCATED_SHARE = 0.05
# So much of a GPU's memory is left, or it is a warning.
_CLOSE = 0.1
# Adam's usual rates: LoRA 1e-4 to 2e-3, all weights 1e-6 to 1e-4.
_LORA_RATES = (1e-5, 1e-2)
_FULL_RATE = 1e-3
# A rate below this share of `learning_rate` counts as none.
_NO_RATE = 0.01
_RATE_SAMPLES = 200
# As float16's loss scale does it, so that small gradients do not become 0; 2^10 cannot overflow.
_FP16_SCALE = 2.0**10
# So many long texts of one length are not a coincidence: they were joined and cut.
_LEAST_BLOCKS, _LEAST_BLOCK_LENGTH = 8, 64


class PreflightFailed(CourseError):
    """A training run that would not do what it is meant to; `report` holds every check."""

    def __init__(self, report: Report):
        self.report = report
        failed = [row for row in report.rows if row.status == FAIL]
        lines = [f"{row.name}: {row.found}. {row.cure}" for row in failed]
        super().__init__(visible("\n".join(["The training is not ready.", *lines])))


class Finding(NamedTuple):
    """What one check says: its status, what it found, and what to do about it."""

    status: str
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Check:
    """A row of the report; `status` is "pass", "warn" or "fail"."""

    name: str
    status: str
    found: str
    cure: str


class Report:
    """What `preflight` found. End a cell with it for a table, or print it."""

    def __init__(self, rows: list[Check], not_judged: dict[str, str]):
        self.rows = rows
        self.not_judged = not_judged

    @property
    def ok(self) -> bool:
        """Whether no check failed; warnings do not count."""
        return not any(row.status == FAIL for row in self.rows)

    @property
    def verdict(self) -> str:
        """One sentence: how many checks there are, and which ask for something."""
        named = {
            status: [row.name for row in self.rows if row.status == status]
            for status in (FAIL, WARN)
        }
        parts = [f"{status}: {', '.join(names)}" for status, names in named.items() if names]
        return f"{len(self.rows)} checks; {'; '.join(parts) or 'ready to train'}."

    def _notes(self) -> list[str]:
        return [f"Not judged: {name} ({why})." for name, why in self.not_judged.items()]

    def __str__(self) -> str:
        left = max(len(row.name) for row in self.rows) + 2
        lines = []
        for row in self.rows:
            head = f"{_SYMBOLS[row.status]} {row.status:<5}{row.name:<{left}}"
            text = row.found + (f"  → {row.cure}" if row.cure else "")
            lines += textwrap.wrap(
                visible(head + text),
                100,
                subsequent_indent=" " * (7 + left),
                break_long_words=False,
                break_on_hyphens=False,
            )
        return "\n".join([*lines, "", *self._notes(), self.verdict])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colours = {PASS: "#007254", WARN: "#8A5A00", FAIL: "#B03A00"}
        cell = "text-align: left; vertical-align: top"
        heads = "".join(
            f'<th style="{cell}">{name}</th>' for name in ("", "check", "found", "what to do")
        )
        rows = []
        for row in self.rows:
            status = f"{_SYMBOLS[row.status]} {row.status}"
            style = f"{cell}; white-space: nowrap; font-weight: bold; color: {colours[row.status]}"
            texts = "".join(
                f'<td style="{cell}">{html.escape(visible(text))}</td>'
                for text in (row.name, row.found, row.cure)
            )
            rows.append(f'<tr><td style="{style}">{html.escape(status)}</td>{texts}</tr>')
        notes = "".join(
            f"<p>{html.escape(visible(line))}</p>" for line in [*self._notes(), self.verdict]
        )
        body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
        return f"<table>{body}</table>{notes}"


@dataclass(frozen=True)
class Document:
    """One text as the model will see it, without padding.

    `source` is the example of the training set that it came from, with all its columns.
    """

    ids: list[int]
    labels: list[int]
    source: Mapping[str, Any]

    @property
    def supervised(self) -> list[int]:
        """The tokens that the loss counts. Nothing predicts the first one."""
        return [label for label in self.labels[1:] if label != IGNORED]


@dataclass(frozen=True)
class Step:
    """One forward and backward pass.

    `norms` is the gradient's norm by adapter, or by parameter where there is none; NaN where no
    gradient arrived. `seconds` is for one batch.
    """

    loss: float = math.nan
    norms: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    error: str = ""


class _Markers(NamedTuple):
    """What a chat template writes between a question and its answer, and after the answer."""

    header: str
    end: str


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _figure(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def _shorten(text: str, width: int = 70) -> str:
    """A text's beginning, on one line and with its line breaks shown."""
    text = repr(text)[1:-1]
    return text if len(text) <= width else f"{text[:width]}…"


def _dense(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _common_prefix(first: list[int], second: list[int]) -> int:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in pairs)


def _rows(batch: Mapping[str, Any], sources: list[Any], pad: int | None) -> Iterator[Document]:
    """The documents of a batch: padding taken off, packed rows taken apart."""
    for row, source in enumerate(sources):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        keep = torch.ones_like(ids, dtype=torch.bool)
        mask, positions = batch.get("attention_mask"), batch.get("position_ids")
        if mask is not None and mask.dim() == 2:
            keep = mask[row].bool()
        starts = [0]
        if positions is not None:
            starts = (positions[row][keep] == 0).nonzero().flatten().tolist() or [0]
        ids, labels = ids[keep].tolist(), labels[keep].tolist()
        for start, end in itertools.pairwise([*starts, len(ids)]):
            # A padding-free batch that is rounded up has each pad token as a document.
            if end - start == 1 and ids[start] == pad and labels[start] == IGNORED:
                continue
            yield Document(ids[start:end], labels[start:end], source)


class Evidence:
    """What the checks look at: the trainer, some of its batches, and one step when asked for."""

    def __init__(self, trainer: Trainer, limit: int, gpu: Gpu | str | None = None):
        self.trainer, self.args, self.model = trainer, trainer.args, trainer.model
        self.gpu = gpu_by_name(gpu) if gpu is not None else None
        if self.gpu is None and trainer.args.device.type == "cuda":
            self.gpu = this_gpu()
        tool = trainer.processing_class
        tool = getattr(tool, "tokenizer", tool)
        self.tokenizer = tool if isinstance(tool, PreTrainedTokenizerBase) else None
        self.template = getattr(trainer, "chat_template", None)
        self.max_length: int | None = getattr(self.args, "max_length", None)
        self.packing: str | None = None
        if getattr(self.args, "packing", False):
            self.packing = self.args.packing_strategy
        self.total: int | None = None
        self.looked_at = 0
        self.error = ""
        self.batches: list[Mapping[str, Any]] = []
        self.documents: list[Document] = []
        self.loader: Any = None
        data = trainer.train_dataset
        if hasattr(data, "__len__"):
            self.total = len(data)
        if self.total == 0:
            return
        try:
            self.loader = trainer.get_train_dataloader()
            self._collate(limit)
        except Exception as error:  # a collator or a data set may raise anything
            self.error = f"{type(error).__name__}: {error}"

    def _examples(self, limit: int) -> tuple[list[Any], list[Any]]:
        """Up to `limit` examples as the collator gets them, and with all their columns."""
        everything = self.trainer.train_dataset
        if self.total is None:
            taken = list(itertools.islice(everything, limit))
            return taken, taken
        places = np.linspace(0, self.total - 1, min(self.total, limit)).round().astype(int).tolist()
        return [self.loader.dataset[i] for i in places], [everything[i] for i in places]

    def _collate(self, limit: int) -> None:
        examples, sources = self._examples(limit)
        self.looked_at = len(examples)
        pad = self.tokenizer.pad_token_id if self.tokenizer else None
        size = max(1, self.args.train_batch_size)
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            their = [
                source if isinstance(source, Mapping) else {}
                for source in sources[start : start + size]
            ]
            batch = self.loader.collate_fn(part)
            self.batches.append(batch)
            if "labels" not in batch:
                continue
            if len(batch["input_ids"]) == len(part):
                self.documents += _rows(batch, their, pad)
                continue
            # A padding-free batch is one row; by itself, an example keeps its origin.
            for example, source in zip(part, their, strict=True):
                self.documents += _rows(self.loader.collate_fn([example]), [source], pad)
        sampler = getattr(self.loader, "batch_sampler", None)
        if self.total is not None and sampler is not None:
            drawn = [self.loader.dataset[i] for i in next(iter(sampler))]
            self.batches.insert(0, self.loader.collate_fn(drawn))

    @functools.cached_property
    def markers(self) -> _Markers | None:
        """The chat template's marks, or None where there is no template to find them in."""
        if not self.tokenizer or not (self.template or self.tokenizer.chat_template):
            return None
        question = [{"role": "user", "content": "course-question"}]
        answered = [*question, {"role": "assistant", "content": "course-answer"}]
        try:
            opened, whole = (
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=messages is question,
                )
                for messages in (question, answered)
            )
            opened = opened.split("course-question")[1]
            between, end = whole.split("course-question")[1].split("course-answer")
        except (TemplateError, IndexError, TypeError, ValueError):
            return None  # such a template wants more than a question and an answer
        same = _common_prefix(list(opened), list(between))
        header = opened[:same].strip()
        return _Markers(header, end.strip()) if header else None

    @functools.cached_property
    def stops(self) -> set[int]:
        """The tokens that end an answer: the model's, the tokenizer's and the template's."""
        found: set[int] = set()
        for config in (getattr(self.model, "generation_config", None), self.model.config):
            ids = getattr(config, "eos_token_id", None)
            found |= set(ids if isinstance(ids, list) else [ids])
        if self.tokenizer:
            found.add(self.tokenizer.eos_token_id)
            if self.markers and self.markers.end:
                end = self.tokenizer.encode(self.markers.end, add_special_tokens=False)
                found.add(end[0])
        return {each for each in found if each is not None}

    def decode(self, ids: list[int]) -> str:
        """Token ids as text, special tokens included."""
        known = [each for each in ids if each >= 0]
        return self.tokenizer.decode(known) if self.tokenizer else str(ids)

    def last(self, ids: list[int]) -> int | None:
        """The last token that is not only white space: templates end a turn with a line break."""
        for token in reversed(ids[-3:]):
            if not self.tokenizer or self.tokenizer.decode([token]).strip():
                return token
        return None

    def truncated(self, document: Document) -> bool:
        """Whether a document was cut at `max_length`."""
        if self.max_length is None or self.packing in ("wrapped", "bfd_split"):
            return False
        if len(document.ids) < self.max_length:
            return False
        kept_start = getattr(self.args, "truncation_mode", "keep_start") == "keep_start"
        # One that ends as it should happens to be that long.
        return not (kept_start and self.last(document.ids) in self.stops)

    @functools.cached_property
    def blocks(self) -> bool:
        """Whether texts were joined and cut into blocks, whose ends mean nothing."""
        if self.packing == "wrapped" or len(self.documents) < _LEAST_BLOCKS:
            return self.packing == "wrapped"
        source = self.documents[0].source
        told = any(name in source for name in ("prompt", "messages", "completion_mask"))
        lengths = [len(document.ids) for document in self.documents]
        longest = max(lengths)
        # The last block may be what was left over.
        alike = lengths.count(longest) >= len(lengths) - 1
        return alike and not told and longest >= _LEAST_BLOCK_LENGTH

    def prompt(self, document: Document) -> list[int] | None:
        """Where a document's prompt is, or None where the data set does not say."""
        source, ids = document.source, document.ids
        if self.packing:
            return None
        for column in ("completion_mask", "assistant_masks"):
            mask = source.get(column)
            kept_start = getattr(self.args, "truncation_mode", "keep_start") == "keep_start"
            if mask is not None and (len(mask) == len(ids) or kept_start):
                return [place for place, bit in enumerate(mask[: len(ids)]) if not bit]
        try:
            if source.get("prompt"):
                prompt = self._encode(source["prompt"], source)
                same = _common_prefix(prompt, ids)
                # Otherwise the tokens were made from something else than this column.
                return list(range(same)) if same >= len(prompt) / 2 else None
            if source.get("messages"):
                return self._turns_of_others(source["messages"], document)
        except (TemplateError, TypeError, ValueError):
            pass
        return None

    def _encode(self, prompt: Any, source: Mapping[str, Any], opened: bool = True) -> list[int]:
        """A prompt as the trainer tokenizes it."""
        if not self.tokenizer:
            raise TypeError("no tokenizer")
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        tools = source.get("tools")
        return self.tokenizer.apply_chat_template(
            prompt,
            chat_template=self.template,
            add_generation_prompt=opened,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            return_dict=True,
            **(source.get("chat_template_kwargs") or {}),
        )["input_ids"]

    def _turns_of_others(self, messages: list[Any], document: Document) -> list[int] | None:
        """The places of all turns but the assistant's, as far as the template keeps them apart."""
        places: list[int] = []
        start = 0
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if turn:
                before = self._encode(messages[:turn], document.source)
                if document.ids[: len(before)] != before[: len(document.ids)]:
                    break
                places += range(start, min(len(before), len(document.ids)))
            start = len(self._encode(messages[: turn + 1], document.source, opened=False))
        return places or None

    @functools.cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @functools.cached_property
    def adapters(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters by what must get a gradient: an adapter of a layer, or one."""
        names = set(getattr(self.model, "peft_config", {}))
        layers = {n for n, m in self.model.named_modules() if isinstance(m, BaseTunerLayer)}
        found: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.trainable.items():
            parts = name.split(".")
            layer = next(
                (n for n in itertools.accumulate(parts, "{}.{}".format) if n in layers), ""
            )
            adapter = next((part for part in parts if part in names), "")
            found.setdefault(f"{layer} [{adapter}]" if layer else name, []).append(parameter)
        return found

    @functools.cached_property
    def is_lora(self) -> bool:
        """Whether LoRA layers are what is trained."""
        return any(isinstance(module, LoraLayer) for module in self.model.modules())

    @functools.cached_property
    def out_of_range(self) -> list[int]:
        """Labels and input ids that the model has no entry for."""
        size = self.vocabulary
        bad: set[int] = set()
        for batch in self.batches:
            for key in ("input_ids", "labels"):
                if key in batch:
                    ids = batch[key].unique()
                    if key == "labels":
                        ids = ids[ids != IGNORED]
                    bad.update(ids[(ids < 0) | (ids >= size)].tolist())
        return sorted(bad)

    @functools.cached_property
    def vocabulary(self) -> int:
        """How many tokens the model's embeddings hold."""
        return self.model.get_input_embeddings().weight.shape[0]

    @functools.cached_property
    def four_bit(self) -> list[nn.Module]:
        """The model's 4-bit layers."""
        # There are none where bitsandbytes was never imported.
        library = sys.modules.get("bitsandbytes")
        kind = library.nn.Linear4bit if library else ()
        return [module for module in self.model.modules() if isinstance(module, kind)]

    @functools.cached_property
    def repacked(self) -> int:
        """How many 4-bit layers bitsandbytes has turned into a layout without a backward."""
        states = [getattr(layer.weight, "quant_state", None) for layer in self.four_bit]
        return sum(bool(getattr(state, "packing_format_for_cpu", False)) for state in states)

    @functools.cached_property
    def planned(self) -> tuple[int, int] | str:
        """The run's updates and the examples of each, or why there are none."""
        if self.loader is None:
            return "there are no batches"
        try:
            numbers = self.trainer.set_initial_training_values(self.args, self.loader)
        except (AttributeError, ValueError, ZeroDivisionError) as error:
            return str(error)
        return numbers[-1], self.trainer.get_total_train_batch_size(self.args)

    @functools.cached_property
    def no_step(self) -> str:
        """Why a step cannot be tried; empty where it can."""
        trainer = self.trainer
        if self.error or not self.batches or "labels" not in self.batches[0]:
            return "there is no batch to try it on"
        if not any(document.supervised for document in self.documents):
            return "no token is supervised"
        if self.out_of_range:
            return "a token is out of range"
        if not self.trainable:
            return "no parameter is trainable"
        if self.repacked:
            return "the 4-bit weights have been repacked"
        split = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        if split or self.args.world_size > 1 or self.args.n_gpu > 1:
            return "a model on several devices is not tried"
        return ""

    @functools.cached_property
    def step(self) -> Step:
        """One step on a batch that training could get: a first pass, and another that is timed."""
        try:
            batch = next(each for each in self.batches if (each["labels"] != IGNORED).any())
            with _checkpointing(self.trainer):
                self._pass(batch)
                loss, seconds = self._pass(batch, release=False)
            norms = {name: _norm(group) for name, group in self.adapters.items()}
            return Step(loss, norms, seconds)
        except Exception as error:  # a loss of the user's own may raise anything
            return Step(error=f"{type(error).__name__}: {error}")

    def _pass(self, batch: Mapping[str, Any], release: bool = True) -> tuple[float, float]:
        """Forward and backward as the trainer does them; the loss, and the seconds taken."""
        trainer, device = self.trainer, self.args.device
        for parameter in self.trainable.values():
            parameter.grad = None
        fp16 = trainer.accelerator.mixed_precision == "fp16"
        offload = getattr(trainer, "maybe_activation_offload_context", contextlib.nullcontext())
        _, items = trainer.get_batch_samples(iter([batch]), 1, device)
        self.model.train()
        _wait(device)
        start = time.perf_counter()
        inputs = trainer._prepare_inputs(dict(batch))
        with offload:
            with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
                loss = trainer.compute_loss(self.model, inputs, num_items_in_batch=items)
            (loss * _FP16_SCALE if fp16 else loss).backward()
        _wait(device)
        seconds = time.perf_counter() - start
        for parameter in self.trainable.values():
            if release:
                parameter.grad = None
            elif fp16 and parameter.grad is not None:
                parameter.grad /= _FP16_SCALE
        return loss.item(), seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _norm(parameters: list[nn.Parameter]) -> float:
    """The norm of some parameters' gradient; NaN where it did not reach any of them."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return math.nan
    return math.hypot(*(torch.linalg.vector_norm(g, dtype=torch.float32).item() for g in gradients))


@contextlib.contextmanager
def _checkpointing(trainer: Trainer) -> Iterator[None]:
    """Activation checkpointing as `train` will switch it on: a step takes longer with it."""
    args, model = trainer.args, trainer.model
    # transformers calls it "gradient" in older versions, and in its modules still.
    wanted = any(
        getattr(args, f"{what}_checkpointing", False) for what in ("activation", "gradient")
    )
    if not wanted or any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    ):
        yield
        return
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    names += ("_require_grads_hook", "_require_grads_hooks")
    before = [
        (module, {n: vars(module)[n] for n in names if n in vars(module)}, [*_hooks(module)])
        for module in model.modules()
    ]
    try:
        if hasattr(model, "activation_checkpointing_enable"):
            options = dict(args.activation_checkpointing_kwargs or {})
            own = {n: options.pop(n) for n in ("every_n_layers", "offload") if n in options}
            model.activation_checkpointing_enable(options or None, **own)
        else:
            model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        yield
    finally:
        for module, attributes, hooks in before:
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(attributes)
            for hook in [*_hooks(module)]:
                if hook not in hooks:
                    del _hooks(module)[hook]


def _hooks(module: nn.Module) -> dict[int, Callable[..., Any]]:
    return module._forward_hooks


@contextlib.contextmanager
def _left_as_found(trainer: Trainer) -> Iterator[None]:
    """Put back what a step changes: modes, gradients, buffers, random states, the trainer."""
    model = trainer.model
    attributes = dict(vars(trainer))
    if "_metrics" in attributes:  # where TRL's trainers collect what they log
        trainer._metrics = copy.deepcopy(trainer._metrics)
    loaders = list(trainer.accelerator._dataloaders)
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = {module: dict(module._buffers) for module in model.modules() if module._buffers}
    values = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    of_python, of_numpy = random.getstate(), np.random.get_state()
    device = trainer.args.device
    gpus = [device.index or 0] if device.type == "cuda" else []
    # A gradient that is there would be added to.
    for parameter in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, own in buffers.items():
            module._buffers.update(own)  # some are replaced, others written to
        with torch.no_grad():
            for buffer, value in values.items():
                buffer.copy_(value)
        vars(trainer).clear()
        vars(trainer).update(attributes)
        trainer.accelerator._dataloaders[:] = loaders


def _batches(ev: Evidence) -> Finding:
    if ev.error:
        return Finding(
            FAIL,
            f"no batch could be made: {_shorten(ev.error, 200)}",
            "Look at one example of trainer.train_dataset and give it to trainer.data_collator.",
        )
    if not ev.looked_at:
        return Finding(
            FAIL,
            "the training set is empty",
            "Look at what a filter has left; with truncation_mode='keep_start', TRL drops examples "
            "whose prompt alone fills max_length.",
        )
    if "labels" not in ev.batches[0]:
        return Finding(
            FAIL,
            f"the batches have {', '.join(ev.batches[0])}, but no labels",
            "Let the collator make labels: DataCollatorForLanguageModeling(tokenizer, mlm=False).",
        )
    lengths = sorted(len(document.ids) for document in ev.documents)
    total = "" if ev.total is None else f" of {ev.total:,}"
    size = f"{lengths[0]:,} to {lengths[-1]:,} tokens"
    return Finding(PASS, f"{ev.looked_at}{total} examples looked at, {size}")


def _no_documents(ev: Evidence) -> Finding | None:
    if not ev.documents:
        return Finding(_NOT_JUDGED, "there are no labelled batches")
    return None


def _template(ev: Evidence) -> Finding:
    if missing := _no_documents(ev):
        return missing
    bos = getattr(ev.tokenizer, "bos_token_id", None)
    doubled = sum(bos is not None and doc.ids[:2] == [bos, bos] for doc in ev.documents)
    if doubled:
        return Finding(
            WARN,
            f"{_plural(doubled, 'example')} of {len(ev.documents)} begin with {ev.decode([bos])} "
            "twice",
            "Take it out of the text: the tokenizer adds it too.",
        )
    source = ev.documents[0].source
    chat = is_conversational(dict(source))
    start = f"begins {_shorten(ev.decode(ev.documents[0].ids))}"
    if ev.markers is None:
        why = "the tokenizer has no chat template"
        if ev.tokenizer and (ev.template or ev.tokenizer.chat_template):
            why = "cannot tell: no marks are found in this chat template"
        return Finding(PASS, f"{why}; {start}")
    # What was cut off at its end may have lost its marks.
    whole = [doc for doc in ev.documents if not ev.truncated(doc)]
    header = _dense(ev.markers.header)
    without = [doc for doc in whole if header not in _dense(ev.decode(doc.ids))]
    if without and ev.packing == "wrapped":
        without = [] if len(without) < len(whole) else without
    mark = _shorten(ev.markers.header)
    if not without:
        return Finding(PASS, f"the chat template's {mark} is there; {start}")
    found = f"{len(without)} of {len(whole)} examples lack the chat template's {mark}"
    if chat:
        return Finding(
            FAIL,
            f"{found}; the first {start}",
            "The conversations were not rendered with this tokenizer's template: give the trainer "
            "the tokenizer that will serve the model, and the messages as they are.",
        )
    return Finding(
        WARN,
        f"{found}; the first {start}",
        "For a chat model, give conversations: prompt and completion as lists of messages, or a "
        "messages column. To train on plain text on purpose, set tokenizer.chat_template = None.",
    )


def _supervised(ev: Evidence) -> Finding:
    if missing := _no_documents(ev):
        return missing
    counts = [len(document.supervised) for document in ev.documents]
    share = sum(counts) / max(1, sum(len(document.ids) for document in ev.documents))
    if empty := counts.count(0):
        return Finding(
            FAIL,
            f"{empty} of {len(counts)} examples have no supervised token: nothing is learned from "
            "them",
            "Look at the labels (-100 is left out): a template without {% generation %}, or a "
            "prompt that fills max_length, masks everything.",
        )
    first = _shorten(ev.decode(ev.documents[0].supervised))
    return Finding(
        PASS,
        f"{share:.0%} of the tokens, {min(counts):,} to {max(counts):,} an example; the first is "
        f"trained on {first}",
    )


def _prompt(ev: Evidence) -> Finding:
    if missing := _no_documents(ev):
        return missing
    judged = wrong = 0
    for document in ev.documents:
        places = ev.prompt(document)
        if places is None:
            continue
        judged += 1
        wrong += any(document.labels[place] != IGNORED for place in places)
    if not judged:
        why = "the data has one text"
        if ev.packing:
            why = "packed rows do not say what a prompt is"
        elif any(name in ev.documents[0].source for name in ("prompt", "messages")):
            why = "the prompt's tokens are not at the beginning of the examples"
        return Finding(PASS, f"cannot tell: {why}")
    if not wrong:
        return Finding(PASS, f"none in the {_plural(judged, 'example')} that name a prompt")
    source = ev.documents[0].source
    option = "completion_only_loss=True"
    if "messages" in source and "prompt" not in source:
        option = "assistant_only_loss=True"
    return Finding(
        WARN,
        f"in {wrong} of {_plural(judged, 'example')} the prompt is trained on too",
        f"Set {option} in SFTConfig, unless the model is to learn to write the prompts as well.",
    )


def _hidden_by_padding(ev: Evidence) -> int:
    """Documents whose end token is not supervised because padding is the same token."""
    tok = ev.tokenizer
    if not tok or tok.pad_token_id is None or tok.pad_token_id not in ev.stops:
        return 0
    hidden = 0
    for document in ev.documents:
        own = document.source.get("labels")
        if own is not None and tok.pad_token_id not in own:
            continue  # masked in the data set already, hence not by the collator
        learned = tok.pad_token_id in document.supervised
        ids = document.source.get("input_ids")
        ids = document.ids if ids is None else list(ids)
        ends = tok.pad_token_id in ids if ev.blocks else ev.last(ids) == tok.pad_token_id
        hidden += ends and not learned
    return hidden


def _eos(ev: Evidence) -> Finding:
    if missing := _no_documents(ev):
        return missing
    if not ev.stops:
        return Finding(PASS, "cannot tell: neither model nor tokenizer names an end token")
    if _hidden_by_padding(ev):
        return Finding(_NOT_JUDGED, "see pad vs eos")
    names = ", ".join(sorted(ev.decode([each]) for each in ev.stops))
    learned = sum(bool(ev.stops & set(document.supervised)) for document in ev.documents)
    if ev.blocks:
        if learned:
            return Finding(PASS, f"{names} in {learned} of {len(ev.documents)} blocks of text")
        return Finding(
            WARN,
            f"{names} in none of {len(ev.documents)} blocks of text",
            "Put the tokenizer's eos_token after each text before joining and cutting them.",
        )
    whole = [doc for doc in ev.documents if doc.supervised and not ev.truncated(doc)]
    missing_end = [doc for doc in whole if ev.last(doc.supervised) not in ev.stops]
    if not missing_end:
        return Finding(PASS, f"{names} is the last supervised token of {len(whole)} examples")
    last = _shorten(ev.decode(missing_end[0].supervised[-5:]))
    return Finding(
        FAIL if len(missing_end) > len(whole) / 2 else WARN,
        f"{len(missing_end)} of {len(whole)} examples are not trained to end with {names}; the "
        f"first ends {last}",
        "End each completion with tokenizer.eos_token, or put the template's end-of-turn token "
        "inside {% generation %}; otherwise the model learns never to stop.",
    )


def _pad(ev: Evidence) -> Finding:
    if missing := _no_documents(ev):
        return missing
    tok = ev.tokenizer
    padded = sum(
        ((batch["labels"] != IGNORED) & (batch["attention_mask"] == 0)).sum().item()
        for batch in ev.batches
        if batch.get("attention_mask") is not None and batch["attention_mask"].dim() == 2
    )
    if padded:
        return Finding(
            FAIL,
            f"{_plural(padded, 'padding token')} are trained on",
            "Set labels to -100 where attention_mask is 0 in the collator.",
        )
    if not tok or tok.pad_token_id is None:
        return Finding(PASS, "the tokenizer has no padding token, and the batches need none")
    pad = ev.decode([tok.pad_token_id])
    if hidden := _hidden_by_padding(ev):
        return Finding(
            FAIL,
            f"both are {pad}, and the collator masks it: {hidden} of {len(ev.documents)} examples "
            "never learn to end",
            "Take a collator that masks by position, as TRL's does, or give the tokenizer another "
            "pad_token that never occurs in texts.",
        )
    if tok.pad_token_id in ev.stops:
        return Finding(PASS, f"both are {pad}; the collator masks only what pads")
    return Finding(PASS, f"{pad} only pads")


def _truncated(ev: Evidence) -> Finding:
    if missing := _no_documents(ev):
        return missing
    longest = max(len(document.ids) for document in ev.documents)
    context = getattr(ev.model.config, "max_position_embeddings", None) or math.inf
    if longest > context:
        return Finding(
            WARN,
            f"an example has {longest:,} tokens; the model was made for {context:,}",
            f"Set max_length={context} in SFTConfig, or leave longer examples out.",
        )
    if ev.packing in ("wrapped", "bfd_split"):
        return Finding(PASS, f"texts are cut between rows of {ev.max_length}, not cut off")
    if ev.max_length is None:
        return Finding(PASS, f"the trainer cuts nothing off; the longest has {longest:,} tokens")
    cut = sum(map(ev.truncated, ev.documents))
    dropped = _dropped(ev)
    share = max(cut / len(ev.documents), dropped / (dropped + (ev.total or 1)))
    found = f"{cut} of {len(ev.documents)} examples are cut off at {ev.max_length:,} tokens"
    if dropped:
        found += f"; {dropped} more were dropped, as nothing but prompt was left"
    if share <= _TRUNCATED_SHARE:
        return Finding(PASS, found)
    return Finding(
        WARN,
        found,
        "Raise max_length in SFTConfig, or shorten the examples: what is cut off is never learned, "
        "least of all the end.",
    )


def _dropped(ev: Evidence) -> int:
    """Examples that TRL has left out because cutting them off left nothing to learn."""
    data = ev.trainer.train_dataset
    if not isinstance(ev.trainer, SFTTrainer) or ev.packing or ev.total is None:
        return 0
    if (ev.args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        return 0
    # Its filter keeps the whole table, and a list of the rows that stay.
    return max(0, data.data.num_rows - len(data))


def _range(ev: Evidence) -> Finding:
    if ev.error or not ev.batches:
        return Finding(_NOT_JUDGED, "there are no batches")
    if not ev.out_of_range:
        return Finding(PASS, f"all below the model's {ev.vocabulary:,}")
    shown = ", ".join(map(str, ev.out_of_range[:5]))
    return Finding(
        FAIL,
        f"the model has {ev.vocabulary:,} tokens, and the batches {shown}",
        "After adding tokens call model.resize_token_embeddings(len(tokenizer)); a label that is "
        "not to count is -100, no other negative number.",
    )


def _trainable(ev: Evidence) -> Finding:
    # 4-bit weights hold two parameters in a byte.
    numbers = {
        name: parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        for name, parameter in ev.model.named_parameters()
    }
    total = sum(numbers.values())
    if not ev.trainable:
        peft = hasattr(ev.model, "peft_config")
        return Finding(
            FAIL,
            f"none of {total:,} parameters",
            "Load the adapter with PeftModel.from_pretrained(..., is_trainable=True), and do not "
            "disable it."
            if peft
            else "Give the trainer a peft_config, or thaw weights with requires_grad_(True).",
        )
    if ev.trainer.optimizer is not None:
        held = {id(p) for group in ev.trainer.optimizer.param_groups for p in group["params"]}
        lost = [name for name, p in ev.trainable.items() if id(p) not in held]
        if lost:
            return Finding(
                FAIL,
                f"the optimizer does not hold {len(lost)} of {len(ev.trainable)} trainable "
                f"tensors, such as {lost[0]}",
                "Make the optimizer after the adapters, from the trainer's own model, or let the "
                "trainer make it.",
            )
    count = sum(numbers[name] for name in ev.trainable)
    places = Counter()
    for name in ev.trainable:
        parts = [part for part in name.split(".") if part not in ("weight", "default", "bias")]
        lora = next((i for i, part in enumerate(parts) if part.startswith("lora_")), None)
        places[f"LoRA in {parts[lora - 1]}" if lora else parts[-1]] += numbers[name]
    shown = [name for name, _ in places.most_common(5)]
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    where = ", ".join(shown).replace(", LoRA in ", ", ") + more
    return Finding(PASS, f"{count:,} of {total:,} parameters ({count / total:.2%}): {where}")


def _asked_rate(ev: Evidence) -> float:
    """The rate that the schedule scales: the optimizer's where the trainer has one already."""
    optimizer = ev.trainer.optimizer
    if optimizer is None:
        return ev.args.learning_rate
    return max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)


def _rates(ev: Evidence, steps: int) -> list[float] | None:
    """The learning rate at samples of the run's updates, the first two among them.

    None where a scheduler of the user's own cannot be asked.
    """
    base, trainer = _asked_rate(ev), ev.trainer
    if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
        scheduler = trainer.lr_scheduler
    else:
        trainer.lr_scheduler = None
        stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
        scheduler = trainer.create_scheduler(steps, optimizer=stand_in)
    places = sorted({0, min(1, steps - 1), *np.linspace(0, steps - 1, _RATE_SAMPLES).astype(int)})
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        return [base * scheduler.lr_lambdas[0](int(place)) for place in places]
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return [base] * len(places)
    return None


def _rate(ev: Evidence) -> Finding:
    asked = _asked_rate(ev)
    if not math.isfinite(asked) or asked <= 0:
        return Finding(
            FAIL,
            f"learning_rate is {asked:g}: nothing would change",
            "Set learning_rate: about 2e-4 to 1e-3 for LoRA, 1e-5 to 5e-5 for all weights.",
        )
    if isinstance(ev.planned, str) or ev.planned[0] < 1:
        return Finding(_NOT_JUDGED, "there are no steps")
    steps = ev.planned[0]
    try:
        rates = _rates(ev, steps)
    except (KeyError, TypeError, ValueError) as error:
        return Finding(
            FAIL,
            f"the scheduler cannot be made: {error}",
            "Give lr_scheduler_kwargs what this lr_scheduler_type asks for, or take another.",
        )
    if rates is None:
        return Finding(PASS, f"{asked:g}; cannot tell what this scheduler makes of it")
    peak, warmup = max(rates), ev.args.get_warmup_steps(steps)
    idle = sum(rate < _NO_RATE * asked for rate in rates) / len(rates)
    if warmup >= steps and peak < 0.99 * asked:
        return Finding(
            FAIL if peak < 0.1 * asked else WARN,
            f"{_plural(warmup, 'warm-up step')}, but the run has {steps}: the rate only reaches "
            f"{peak:.1e} of {asked:g}",
            "Set warmup_steps to less than the run, for example 0.05 for a twentieth of it.",
        )
    if max(rates[:2]) <= 0 or idle > 0.5:
        return Finding(
            FAIL,
            f"the schedule is at about 0 for {idle:.0%} of the run",
            "Take another lr_scheduler_type, such as 'cosine' or 'linear', or look at the "
            "scheduler's own settings.",
        )
    kind = getattr(ev.args.lr_scheduler_type, "value", ev.args.lr_scheduler_type)
    found = f"{peak:.1e} at its highest, {rates[-1]:.1e} at the end ({kind}, warm-up {warmup})"
    if "adam" in str(getattr(ev.args.optim, "value", ev.args.optim)):
        if ev.is_lora and asked < _LORA_RATES[0]:
            return Finding(
                WARN,
                found,
                "Raise learning_rate: LoRA usually takes 1e-4 to 2e-3, and learns next to nothing "
                "with this.",
            )
        top = _LORA_RATES[1] if ev.is_lora else _FULL_RATE
        own_kind = hasattr(ev.model, "peft_config") and not ev.is_lora
        if asked > top and not own_kind:
            return Finding(
                WARN,
                found,
                f"Lower learning_rate: above {top:g} training usually destroys what the model "
                "knows.",
            )
    return Finding(PASS, found)


def _dtype(ev: Evidence) -> Finding:
    sizes: Counter[torch.dtype] = Counter()
    for parameter in ev.model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.numel()
    weights = sizes.most_common(1)[0][0]
    trained = {parameter.dtype for parameter in ev.trainable.values()}
    if torch.float16 in trained:
        return Finding(
            FAIL,
            "trained parameters are in float16: their gradients overflow, and small updates vanish",
            "Load the model with dtype=torch.float32 (and fp16=True in the arguments), or in "
            "bfloat16 where the hardware has it.",
        )
    if ev.args.fp16 and torch.bfloat16 in trained:
        return Finding(
            WARN,
            "fp16=True, and trained parameters are in bfloat16, which its loss scaling cannot take",
            "Set bf16=True, or call .float() on the trained parameters.",
        )
    hardware = detect()
    on_gpu = ev.args.device.type == "cuda"
    if not on_gpu:
        hardware = replace(hardware, gpu_name=None, gpu_capability=None)
    choice = pick_dtype(hardware)
    plain = str(weights).removeprefix("torch.")
    mixed = "bfloat16" if ev.args.bf16 else "float16" if ev.args.fp16 else plain
    found = f"weights in {plain}, computing in {mixed}; {choice.reason}"
    if "bfloat16" in (plain, mixed) and choice.value is not torch.bfloat16:
        return Finding(
            FAIL if on_gpu and ev.args.bf16 else WARN,
            found,
            f"Set bf16=False and load the model with dtype={choice.value}: bfloat16 is emulated "
            "here, slowly.",
        )
    if "float16" in (plain, mixed) and not on_gpu:
        return Finding(WARN, found, f"Set fp16=False and load the model with dtype={choice.value}.")
    return Finding(PASS, found)


def _quantized(ev: Evidence) -> Finding:
    layers = ev.four_bit
    if not layers:
        return Finding(PASS, "no 4-bit layers")
    if ev.repacked:
        return Finding(
            FAIL,
            f"{ev.repacked} of {len(layers)} 4-bit layers have been repacked for inference: what "
            "is trained gets wrong gradients or none, without any error",
            "Load the model again, and call course_utils.quantization.keep_weights_trainable("
            "model) before its first forward.",
        )
    on_cpu = [layer for layer in layers if layer.weight.device.type == "cpu"]
    open_to = sum(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in on_cpu)
    if open_to:
        return Finding(
            WARN,
            f"{open_to} of {len(layers)} 4-bit layers would be repacked at the first evaluation or "
            "generation, and train on wrong gradients from then on",
            "Call course_utils.quantization.keep_weights_trainable(model) before training.",
        )
    return Finding(PASS, f"{len(layers)} 4-bit layers, none of which will be repacked")


def _step(ev: Evidence) -> Finding:
    if ev.no_step:
        return Finding(_NOT_JUDGED, ev.no_step)
    step = ev.step
    if step.error:
        cure = "Training would end with this error: look at the batch and the loss function."
        if "out of memory" in step.error.lower():
            cure = (
                "Lower per_device_train_batch_size and raise gradient_accumulation_steps by as "
                "much, shorten max_length, or set activation_checkpointing=True."
            )
        elif "does not require grad" in step.error:
            cure = (
                "Nothing trainable takes part in the loss: call model.enable_input_require_grads() "
                "or set use_reentrant=False where activations are checkpointed."
            )
        return Finding(FAIL, _shorten(step.error, 300), cure)
    norms = [norm for norm in step.norms.values() if not math.isnan(norm)]
    total = math.hypot(*norms)
    if not math.isfinite(step.loss) or not math.isfinite(total):
        return Finding(
            FAIL,
            f"the loss is {step.loss:g} and its gradient's norm {total:g}",
            "Look for NaN in the weights, for a dtype that overflows (float16), or for a batch "
            "without labels.",
        )
    # An expert that no token was sent to has no gradient, and that is all right.
    idle = [n for n, norm in step.norms.items() if not norm > 0 and "expert" not in n]
    reached = f"loss {step.loss:.3g} (a uniform guess has {math.log(ev.vocabulary):.3g})"
    if idle and (total == 0 or any(name.endswith("]") for name in idle)):
        return Finding(
            FAIL,
            f"{reached}, but no gradient in {len(idle)} of {_plural(len(step.norms), 'part')}, "
            f"such as {idle[0]}",
            "Make sure that the adapter is active (model.set_adapter), takes part in the forward, "
            "and was not initialised with zeros throughout.",
        )
    if idle:
        return Finding(
            WARN,
            f"{reached}, but no gradient in {len(idle)} of {_plural(len(step.norms), 'tensor')}, "
            f"such as {idle[0]}",
            "Freeze what takes no part in the loss with requires_grad_(False).",
        )
    part = "adapter" if any(name.endswith("]") for name in step.norms) else "tensor"
    return Finding(
        PASS, f"{reached}; gradient norm {total:.2g}, > 0 in {_plural(len(step.norms), part)}"
    )


def _steps(ev: Evidence) -> Finding:
    if ev.error or not ev.batches:
        return Finding(_NOT_JUDGED, "there are no batches")
    args = ev.args
    if isinstance(ev.planned, str) or ev.planned[0] < 1:
        return Finding(
            FAIL,
            f"the run has no steps{f' ({ev.planned})' if isinstance(ev.planned, str) else ''}",
            "Set max_steps or num_train_epochs above 0; dataloader_drop_last leaves out a last "
            "batch that is not full.",
        )
    steps, size = ev.planned
    parts = [f"{args.per_device_train_batch_size}"]
    parts += [f"{args.gradient_accumulation_steps} accumulated"]
    devices = args.world_size * max(1, args.n_gpu)
    parts += [f"{devices} devices"] if devices > 1 else []
    found = f"{' × '.join(parts)} = {_plural(size, 'example')} an update; {steps:,} updates"
    if ev.total is not None:
        found += f", {steps * size / ev.total:.3g} × the {_plural(ev.total, 'example')}"
        if ev.total < size:
            return Finding(
                WARN,
                found,
                "An update takes more examples than there are: lower the batch size or "
                "gradient_accumulation_steps.",
            )
    return Finding(PASS, found)


def _minutes(ev: Evidence) -> Finding:
    if ev.no_step or ev.step.error:
        return Finding(_NOT_JUDGED, ev.no_step or "the step did not run")
    if isinstance(ev.planned, str) or ev.planned[0] < 1:
        return Finding(_NOT_JUDGED, "there are no steps")
    updates, accumulated = ev.planned[0], ev.args.gradient_accumulation_steps
    minutes = updates * accumulated * ev.step.seconds / 60
    return Finding(
        PASS,
        f"about {_figure(minutes)} minutes: {updates:,} × {accumulated} × "
        f"{_figure(ev.step.seconds)} s, "
        "without evaluating and saving",
    )


def _phase(found: Prediction) -> str:
    """The phase with the peak, in words."""
    name = max(found.phases, key=found.phases.__getitem__)
    whole = {"optimizer": "optimizer's step", "evaluation": "evaluation", "loading": "loading"}
    return whole.get(name, f"{name} pass")


def _memory(ev: Evidence) -> Finding:
    """The peak that is predicted, against the GPU; without one there is nothing to hold it to."""
    if ev.gpu is None or ev.error or not ev.batches:
        return Finding(_NOT_JUDGED, "")
    usable = usable_bytes(ev.gpu)
    try:
        found = predict(ev.trainer, ev.gpu)
    except CourseError as error:
        return Finding(_NOT_JUDGED, _shorten(str(error), 200))
    need = found.peak_reserved_mb * 1e6
    told = (
        f"about {need / 1e6:,.0f} of the {usable / 1e6:,.0f} MB that a {ev.gpu.name} has for it "
        f"(with the CUDA context {found.process_mb:,.0f} MB); {found.peak_allocated_mb:,.0f} MB of "
        f"them in tensors, at the peak in the {_phase(found)}"
    )
    if need <= (1 - _CLOSE) * usable:
        return Finding(PASS, told)
    close = "Predictions can be off by a few percent: leave more room, or watch the first steps."
    if need <= usable:
        return Finding(WARN, told, close)
    answers = ways_to_fit(found.setup, ev.gpu, wanted=1, together=2, progress=False)
    way = "No one or two of the usual changes are enough: take a smaller model."
    if not answers.empty:
        way = f"The cheapest change: {answers['change'][0]} (costs {answers['cost'][0]})."
    return Finding(FAIL, told, way)


# In the order of the report.
CHECKS: dict[str, Callable[[Evidence], Finding]] = {
    "batches": _batches,
    "text and template": _template,
    "supervised tokens": _supervised,
    "prompt not supervised": _prompt,
    "EOS supervised": _eos,
    "pad vs eos": _pad,
    "truncated": _truncated,
    "labels in range": _range,
    "trainable parameters": _trainable,
    "learning rate": _rate,
    "dtype": _dtype,
    "4-bit weights on a CPU": _quantized,
    "loss and gradients": _step,
    "batch and steps": _steps,
    "memory": _memory,
    "expected minutes": _minutes,
}


def preflight(
    trainer: Trainer,
    *,
    strict: bool = False,
    examples: int | None = None,
    gpu: Gpu | str | None = None,
) -> Report:
    """Check a training run before it starts, on its own batches, and change nothing.

    Up to `examples` examples, drawn evenly over the training set, go through the trainer's
    collator; one batch goes forward and backward twice, the second time by the clock.

    Args:
        trainer: a transformers `Trainer` or one of TRL's, as `train` will be called on it.
        strict: raise if a check fails.
        examples: how many to look at, by default 64.
        gpu: a GPU, or its name, that the memory is predicted for; by default this machine's, and
            without one there is no row about memory.

    Returns:
        The report, with a row for each check of `CHECKS`: pass, warn or fail, and the cure. What
        depends on a check that failed is not judged, and named below the table. Times are in
        minutes and seconds.

    Raises:
        PreflightFailed: a check failed, and `strict` is set.
        UnknownName: a GPU that the course does not know.
        ValueError: `examples` is below 1, or `trainer` is none.

    Introduced in notebook 03. A training set that can be iterated only once is used up by it.
    """
    checks.a("trainer", trainer, Trainer, "a Trainer of transformers or TRL")
    checks.flag("strict", strict)
    limit = _EXAMPLES if examples is None else checks.whole("examples", examples, 1)
    rows: list[Check] = []
    not_judged: dict[str, str] = {}
    with _left_as_found(trainer):
        evidence = Evidence(trainer, limit, gpu)
        for name, check in CHECKS.items():
            finding = check(evidence)
            if finding.status == _NOT_JUDGED:
                if finding.found:
                    not_judged[name] = finding.found
            else:
                rows.append(Check(name, *finding))
    report = Report(rows, not_judged)
    if strict and not report.ok:
        raise PreflightFailed(report)
    return report


class _CallableModule(types.ModuleType):
    """Lets `course_utils.preflight(trainer)` work: Python binds that name to this module."""

    def __call__(self, *args: Any, **options: Any) -> Report:
        return preflight(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
