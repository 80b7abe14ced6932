"""What the checks examine: the trainer's batches, their texts, the chat template, one step."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import has_length

from course_utils._core.documents import IGNORED, split_documents
from course_utils.preflight import _kinds as kinds
from course_utils.preflight import _rows, _trial
from course_utils.preflight._templates import Template

EXAMPLES = 64
# This many long texts of equal length are no coincidence: they were packed or truncated.
_LEAST_BLOCKS, _LEAST_BLOCK_LENGTH = 8, 64
# Number of random batches to average lengths over.
_DRAWN = 400


@dataclass(frozen=True)
class Sample:
    """One text as the model will see it, without padding.

    `source` is the training example that it came from, with all its columns.
    """

    ids: list[int]
    labels: list[int]
    source: Mapping[str, Any]

    @property
    def supervised(self) -> list[int]:
        """The tokens that count in the loss. The first one is never predicted."""
        return [label for label in self.labels[1:] if label != IGNORED]


def _samples(batch: Mapping[str, Any], sources: list[Any]) -> Iterator[Sample]:
    """Yield the texts of a batch, with a source for each row."""
    for document in split_documents(batch):
        ids = [token for token, read in zip(document.ids, document.read, strict=True) if read]
        labels = [label for label, read in zip(document.labels, document.read, strict=True) if read]
        if ids:
            yield Sample(ids, labels, sources[document.row])


class TrainerSnapshot:
    """A trainer, some of its batches, and one training step if a check needs it."""

    def __init__(self, trainer: Trainer, limit: int, gpu: Any = None, resume: Any = None):
        self.trainer, self.args, self.model = trainer, trainer.args, trainer.model
        self.base = kinds.base_of(trainer.model)
        self.gpu, self.resume = gpu, resume
        self.kind = kinds.kind_of(trainer)
        tool = trainer.processing_class
        tool = getattr(tool, "tokenizer", tool)
        # None for a processor: checks that need a tokenizer test for it.
        self.tokenizer: Any = tool if isinstance(tool, PreTrainedTokenizerBase) else None
        self.template = Template(
            self.tokenizer, getattr(trainer, "chat_template", None), self.model
        )
        self.max_length: int | None = getattr(self.args, "max_length", None)
        self.packing: str | None = None
        if getattr(self.args, "packing", False):
            self.packing = self.args.packing_strategy
        self.total: int | None = None
        self.looked_at = 0
        self.error = ""
        self.examples: list[Any] = []
        self.batches: list[Any] = []
        self.samples: list[Sample] = []
        self.loader: Any = None
        data = trainer.train_dataset
        if hasattr(data, "__len__"):
            self.total = len(data)
        if self.total == 0:
            return
        try:
            self.loader = trainer.get_train_dataloader()
            self._collate(limit)
        except Exception as error:  # a collator or a dataset may raise anything
            self.error = f"{type(error).__name__}: {error}"

    def _examples(self, limit: int) -> tuple[list[Any], list[Any]]:
        """Return up to `limit` examples, as passed to the collator and with all their columns."""
        everything = self.trainer.train_dataset
        if self.total is None:
            taken = list(itertools.islice(everything, limit))
            return taken, taken
        places = np.linspace(0, self.total - 1, min(self.total, limit)).round().astype(int).tolist()
        return [self.loader.dataset[i] for i in places], [everything[i] for i in places]

    def _collate(self, limit: int) -> None:
        self.examples, sources = self._examples(limit)
        self.looked_at = len(self.examples)
        sampler = getattr(self.loader, "batch_sampler", None)
        if self.total is not None and sampler is not None:
            drawn = [self.loader.dataset[i] for i in next(iter(sampler))]
            self.batches.append(self.loader.collate_fn(drawn))
        if self.kind == kinds.ONLINE:
            return
        size = max(1, self.args.train_batch_size)
        for start in range(0, len(self.examples), size):
            part = self.examples[start : start + size]
            their = [
                source if isinstance(source, Mapping) else {}
                for source in sources[start : start + size]
            ]
            batch = self.loader.collate_fn([dict(e) if type(e) is dict else e for e in part])
            self.batches.append(batch)
            if self.kind != kinds.CAUSAL or "labels" not in batch or "input_ids" not in batch:
                continue
            if len(batch["input_ids"]) == len(part):
                self.samples += _samples(batch, their)
                continue
            # A padding-free batch is one row; collated singly, an example keeps its origin.
            for example, source in zip(part, their, strict=True):
                self.samples += _samples(self.loader.collate_fn([example]), [source])

    @functools.cached_property
    def labelled(self) -> list[Mapping[str, Any]]:
        """The batches that have token ids and labels."""
        return [
            b for b in self.batches if isinstance(b, Mapping) and {"input_ids", "labels"} <= {*b}
        ]

    @functools.cached_property
    def rows(self) -> _rows.Rows | None:
        """Statistics of all rows of the training set; None if they cannot be computed."""
        if self.loader is None or self.total is None:
            return None
        return _rows.scan(self.loader.dataset)

    @property
    def keeps_start(self) -> bool:
        """Whether truncation removes the end of a text."""
        return getattr(self.args, "truncation_mode", "keep_start") == "keep_start"

    def decode(self, ids: list[int]) -> str:
        """Decode token ids, including special tokens."""
        known = [each for each in ids if each >= 0]
        return self.tokenizer.decode(known) if self.tokenizer else str(ids)

    def last(self, ids: list[int]) -> int | None:
        """Return the last token that is not white space: templates end a turn with a line break."""
        for token in reversed(ids[-3:]):
            if not self.tokenizer or self.tokenizer.decode([token]).strip():
                return token
        return None

    def truncated(self, sample: Sample) -> bool:
        """Return whether a text was truncated, at the trainer's `max_length` or when tokenized."""
        if self.own_cut is not None and len(sample.ids) >= self.own_cut:
            return self.last(sample.ids) not in self.template.ends
        if self.max_length is None or self.packing in ("wrapped", "bfd_split"):
            return False
        if len(sample.ids) < self.max_length:
            return False
        # A text with a proper end just happens to be that long.
        return not (self.keeps_start and self.last(sample.ids) in self.template.ends)

    @functools.cached_property
    def own_cut(self) -> int | None:
        """The length to which the data was truncated before it got to the trainer, or None."""
        if self.packing or self.blocks or not self.samples:
            return None
        lengths = [len(sample.ids) for sample in self.samples]
        longest = max(lengths)
        if longest < 8 or (self.max_length is not None and longest >= self.max_length):
            return None
        at_limit = [sample for sample in self.samples if len(sample.ids) == longest]
        if len(at_limit) < max(3, 0.05 * len(self.samples)):
            return None
        open_ended = sum(self.last(sample.ids) not in self.template.ends for sample in at_limit)
        shorter = [sample for sample in self.samples if len(sample.ids) < longest]
        ended = sum(self.last(sample.ids) in self.template.ends for sample in shorter)
        if shorter and ended <= 0.8 * len(shorter):
            return None
        if not shorter and longest < _LEAST_BLOCK_LENGTH:
            return None  # short texts that happen to have the same length
        return longest if open_ended > 0.8 * len(at_limit) else None

    @functools.cached_property
    def blocks(self) -> bool:
        """Whether texts were joined and cut into blocks, whose ends mean nothing."""
        if self.packing == "wrapped" or len(self.samples) < _LEAST_BLOCKS:
            return self.packing == "wrapped"
        source = self.samples[0].source
        told = any(name in source for name in ("prompt", "messages", "completion_mask"))
        lengths = [len(sample.ids) for sample in self.samples]
        longest = max(lengths)
        # The last block may be a shorter remainder.
        alike = lengths.count(longest) >= len(lengths) - 1
        # Truncated texts begin the way texts do; blocks begin anywhere.
        begin = {tuple(sample.ids[:2]) for sample in self.samples}
        anywhere = len(begin) > 1
        # Padded texts end with many copies of one token.
        filled = sum(len(set(sample.ids[-3:])) == 1 for sample in self.samples)
        if filled > len(self.samples) / 2:
            return False
        return alike and not told and longest >= _LEAST_BLOCK_LENGTH and anywhere

    def prompt(self, sample: Sample) -> list[int] | None:
        """Return the positions of a text's prompt; None if the dataset does not tell."""
        source, ids = sample.source, sample.ids
        if self.packing:
            return None
        for column in ("completion_mask", "assistant_masks"):
            mask = source.get(column)
            if mask is not None and (len(mask) == len(ids) or self.keeps_start):
                return [place for place, bit in enumerate(mask[: len(ids)]) if not bit]
        try:
            if source.get("prompt"):
                prompt = self.template.encode(source["prompt"], source)
                same = common_prefix(prompt, ids)
                # Otherwise the tokens were not made from this column.
                return list(range(same)) if same >= len(prompt) / 2 else None
            if source.get("messages"):
                return self._turns_of_others(source["messages"], sample)
        except Exception:  # a template may raise anything
            pass
        return None

    def _turns_of_others(self, messages: list[Any], sample: Sample) -> list[int] | None:
        """Return the positions of all non-assistant turns, as far as the template separates them.

        The assistant's own header is not included: with some templates it is generated.
        """
        places: list[int] = []
        start = 0
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if turn:
                before = self.template.encode(messages[:turn], sample.source, opened=False)
                same = common_prefix(before, sample.ids)
                if same < len(before) - 2:
                    break
                places += range(start, same)
            start = len(self.template.encode(messages[: turn + 1], sample.source, opened=False))
        return places or None

    @functools.cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training updates, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @functools.cached_property
    def adapters(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters, grouped by what must get a gradient: an adapter or a parameter."""
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
        """Whether LoRA layers are trained."""
        return any(isinstance(module, LoraLayer) for module in self.model.modules())

    @functools.cached_property
    def has_experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return any("expert" in name for name, _ in self.model.named_parameters())

    @functools.cached_property
    def out_of_range(self) -> list[int]:
        """Labels and input ids that the model has no entry for, in any row that was scanned."""
        size = self.vocabulary
        if not size:
            return []
        bad: set[int] = set()
        for batch in self.batches:
            for key in ("input_ids", "labels") if isinstance(batch, Mapping) else ():
                if key == "labels" and self.kind not in (kinds.CAUSAL, kinds.SEQ2SEQ, kinds.MASKED):
                    continue
                value = batch.get(key)
                if isinstance(value, torch.Tensor) and not value.is_floating_point():
                    ids = value.unique()
                    if key == "labels":
                        ids = ids[ids != IGNORED]
                    bad.update(ids[(ids < 0) | (ids >= size)].tolist())
        if self.rows is not None:
            ends = [self.rows.least, self.rows.most]
            if self.rows.labels is not None and self.kind in (kinds.CAUSAL, kinds.SEQ2SEQ):
                ends += self.rows.labels
            for values in ends:
                bad.update(values[(values < 0) | (values >= size)].tolist())
        return sorted(bad)

    @functools.cached_property
    def vocabulary(self) -> int:
        """The size of the model's embedding; 0 if it has none."""
        try:
            return self.model.get_input_embeddings().weight.shape[0]
        except (AttributeError, NotImplementedError):
            return 0

    @functools.cached_property
    def four_bit(self) -> list[nn.Module]:
        """The model's 4-bit layers."""
        # There are none if bitsandbytes was never imported.
        library = sys.modules.get("bitsandbytes")
        kind = library.nn.Linear4bit if library else ()
        return [module for module in self.model.modules() if isinstance(module, kind)]

    @functools.cached_property
    def repacked(self) -> int:
        """The number of 4-bit layers that bitsandbytes repacked so that they have no backward."""
        states = [getattr(layer.weight, "quant_state", None) for layer in self.four_bit]
        return sum(bool(getattr(state, "packing_format_for_cpu", False)) for state in states)

    @functools.cached_property
    def planned(self) -> tuple[int, int] | str:
        """The number of updates and the examples in each, or why they are unknown."""
        if self.loader is None:
            return "there are no batches"
        try:
            numbers = self.trainer.set_initial_training_values(self.args, self.loader)
        except (AttributeError, ValueError, ZeroDivisionError) as error:
            return str(error)
        return numbers[-1], self.trainer.get_total_train_batch_size(self.args)

    @functools.cached_property
    def passes(self) -> float | None:
        """How often the run goes through the training set; None if that is unknown.

        As the trainer counts its epochs: the last update of a pass may take fewer examples.
        """
        if isinstance(self.planned, str) or self.total is None:
            return None
        batches = len(self.loader) if has_length(self.loader) else 0
        if not batches:
            return self.planned[0] * self.planned[1] / self.total
        return self.planned[0] / math.ceil(batches / self.args.gradient_accumulation_steps)

    @functools.cached_property
    def no_step(self) -> str:
        """Why a step cannot be tried; empty if it can."""
        trainer = self.trainer
        if self.error or not self.batches:
            return "there is no batch to try it on"
        if self.kind in (kinds.CAUSAL, kinds.SEQ2SEQ, kinds.MASKED):
            if not self.labelled:
                return "there is no batch to try it on"
            if not any((batch["labels"] != IGNORED).any() for batch in self.labelled):
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

    def tokens(self, batch: Any) -> int:
        """Return the number of tokens in a batch, including padding."""
        if not isinstance(batch, Mapping):
            return 0
        return sum(value.numel() for name, value in batch.items() if name.endswith("input_ids"))

    @functools.cached_property
    def step(self) -> _trial.Step:
        """One step on a batch that could occur in training: a first pass, then timed ones."""
        trained = list(self.trainable.values())
        batches = [
            b
            for b in self.batches
            if not isinstance(b, Mapping) or "labels" not in b or (b["labels"] != IGNORED).any()
        ]
        try:
            timed = []
            with _trial.checkpointing(self.trainer):
                if self.kind == kinds.ONLINE:
                    loss, seconds = _trial.one_pass(
                        self.trainer, batches[0], trained, release=False
                    )
                    timed = [(0, seconds)]
                    norms = {name: _trial.norm(group) for name, group in self.adapters.items()}
                    return _trial.Step(loss, norms, tuple(timed))
                _trial.one_pass(self.trainer, batches[0], trained)
                longest = max(batches, key=self.tokens)
                if self.tokens(longest) > 1.5 * self.tokens(batches[0]):
                    _, seconds = _trial.one_pass(self.trainer, longest, trained)
                    timed.append((self.tokens(longest), seconds))
                loss, seconds = _trial.one_pass(self.trainer, batches[0], trained, release=False)
                timed.insert(0, (self.tokens(batches[0]), seconds))
            norms = {name: _trial.norm(group) for name, group in self.adapters.items()}
            return _trial.Step(loss, norms, tuple(timed))
        except Exception as error:  # a user-defined loss may raise anything
            return _trial.Step(error=f"{type(error).__name__}: {error}")
        finally:
            for parameter in trained:
                parameter.grad = None

    @functools.cached_property
    def seconds(self) -> float:
        """Estimate the mean time for a batch from the lengths of all rows and the timed batches."""
        (short, fast), *more = self.step.timed
        if not more:
            return fast
        (long, slow) = more[0]
        rate = max(0.0, (slow - fast) / (long - short))
        return max(0.0, fast + rate * (self._mean_tokens() - short))

    @functools.cached_property
    def padding(self) -> float:
        """The share of padding in batches of random rows; 0 if unknown."""
        free = self.packing or getattr(self.trainer, "padding_free", False)
        grouped = "length" in str(getattr(self.args, "train_sampling_strategy", ""))
        if self.rows is None or free or grouped:
            return 0.0
        mean = float(self.rows.lengths.mean()) * max(1, self.args.train_batch_size)
        return max(0.0, 1 - mean / max(1.0, self._mean_tokens()))

    def _mean_tokens(self) -> float:
        """Return the mean number of tokens in a padded batch of random rows."""
        size = max(1, self.args.train_batch_size)
        if self.rows is None:
            return float(np.mean([self.tokens(batch) for batch in self.batches]))
        drawn = np.random.default_rng(0).choice(self.rows.lengths, (_DRAWN, size))
        free = getattr(self.trainer, "padding_free", False)
        return float((drawn.sum(1) if free else drawn.max(1) * size).mean())


def common_prefix(first: list[int], second: list[int]) -> int:
    """Return the length of the common prefix of two lists."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in pairs)


def figure(number: float) -> str:
    """Format a number with two significant digits, or as an integer."""
    if not math.isfinite(number):
        return str(number)
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def plural(count: int, what: str, several: str = "") -> str:
    """Format a count with its noun."""
    return f"{count:,} {what if count == 1 else several or f'{what}s'}"


def shorten(text: str, width: int = 70) -> str:
    """Return the beginning of a text on one line, with visible line breaks."""
    text = repr(text)[1:-1]
    return text if len(text) <= width else f"{text[:width]}…"
