"""Check, by measuring, that texts sharing a row or a batch do not affect each other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from course_utils._core.documents import Document, split_documents
from course_utils.preflight import _kinds as kinds
from course_utils.preflight import _trial
from course_utils.preflight._report import PASS, SILENT, WARN, Finding, not_judged
from course_utils.preflight._snapshot import TrainerSnapshot

# Losses that differ by more than this share of their mean are not just rounding errors. By compute
# dtype: for different texts before an otherwise unchanged one, and for a row without padding, where
# the kernels add in another order.
_BEFORE = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 5e-3}
_BESIDE = {torch.float32: 2e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
_MOST_TOKENS = 4096
# Text-only batches: a row's images cannot be separated from those of other rows.
_TEXT = {"input_ids", "labels", "attention_mask", "position_ids", "token_type_ids"}


def _tolerance(ev: TrainerSnapshot, of: dict[torch.dtype, float]) -> float:
    if getattr(ev.args, "bf16", False) or any(
        type(p).__name__ == "Int8Params" for p in ev.model.parameters()
    ):
        return of[torch.bfloat16]
    weights = {p.dtype for p in ev.model.parameters() if p.is_floating_point()}
    return max(of.get(dtype, of[torch.float32]) for dtype in weights)


def token_losses(ev: TrainerSnapshot, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return each next token's cross-entropy in a plain forward pass: float32, (rows, tokens - 1).

    Labels are not passed to the model, so its own loss is not involved.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    inputs = ev.trainer._prepare_inputs(inputs)
    with torch.no_grad(), _trial.without_dropout(), ev.trainer.accelerator.autocast():
        logits = ev.model(**inputs, use_cache=False).logits
    ids = inputs["input_ids"]
    logits = logits[:, -ids.shape[1] :]  # prompt tuning puts its own tokens before them
    return F.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none"
    ).cpu()


def _packed(ev: TrainerSnapshot) -> tuple[Mapping[str, Any], int] | None:
    """Return a batch with a single row, cut short, and the start of its last text."""
    for batch in ev.labelled:
        ids = batch["input_ids"]
        if ev.packing == "wrapped":
            row = {
                n: v[:1] for n, v in batch.items() if isinstance(v, torch.Tensor) and v.dim() == 2
            }
            if (start := _after_an_end(ev, row["input_ids"][0].tolist())) is not None:
                return row, start
            continue
        pieces = [d for d in split_documents(batch) if any(d.read)]
        first = [d for d in pieces if d.row == pieces[0].row] if pieces else []
        if len(first) < 2 or ids.numel() > 4 * _MOST_TOKENS:
            continue
        row = dict(batch)
        if len(ids) > 1:
            row = {
                n: v[first[0].row : first[0].row + 1]
                for n, v in batch.items()
                if isinstance(v, torch.Tensor) and v.shape == ids.shape
            }
        last = max((d for d in first if sum(d.read) > 2), key=lambda d: d.start, default=None)
        if last is not None and last.start:
            return row, last.start
    return None


def _after_an_end(ev: TrainerSnapshot, ids: list[int]) -> int | None:
    """Find the start of a text in a row of joined texts, after another text's EOS token."""
    begin = None
    marks = ev.template.marks
    for place in range(len(ids) // 3, len(ids) - 4):
        if ids[place] in ev.template.ends:
            begin = place + 1
            if marks is None or begin > len(ids) // 2:
                break
    return begin


def _changed(
    ev: TrainerSnapshot, batch: Mapping[str, Any], start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses from `start` on, for the row as it is and with other tokens before it."""
    other = dict(batch)
    ids = batch["input_ids"].clone()
    generator = torch.Generator().manual_seed(0)
    # Other tokens from the same row, so that none is unusual.
    pool = ids[0, torch.randint(0, ids.shape[1], (start,), generator=generator)]
    ids[0, :start] = torch.where(pool == ids[0, :start], ids[0, start], pool)
    other["input_ids"] = ids
    stop = ids.shape[1]
    read = _read(batch, stop)
    parts = []
    for each in (batch, other):
        losses = token_losses(ev, each)[0, start:]
        keep = torch.tensor(read[start + 1 : stop][: len(losses)])
        parts.append(losses[: len(keep)][keep])
    return parts[0], parts[1]


def _read(batch: Mapping[str, Any], length: int) -> list[bool]:
    read = [False] * length
    for document in split_documents(batch):
        if document.row == 0:
            for place, bit in enumerate(document.read):
                read[document.start + place] = bit
    return read


def _padded(ev: TrainerSnapshot) -> tuple[Mapping[str, Any], Document] | None:
    """Return a batch with padding, and its row with the most padding."""
    for batch in ev.labelled:
        mask, ids = batch.get("attention_mask"), batch["input_ids"]
        if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape or bool(mask.all()):
            continue
        if ids.numel() > 4 * _MOST_TOKENS or not set(batch) <= _TEXT:
            continue
        documents = split_documents(batch)
        shortest = min(documents, key=lambda d: sum(d.read))
        if sum(shortest.read) > 3:
            return batch, shortest
    return None


def _alone(
    ev: TrainerSnapshot, batch: Mapping[str, Any], document: Document
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a row's losses in its batch, and without padding."""
    read = torch.tensor(document.read)
    row = document.row
    together = token_losses(ev, batch)[row][read[1:] & read[:-1]]
    ids = batch["input_ids"][row][read][None]
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return together, token_losses(ev, alone)[0]


def _difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the root mean square of the differences as a share of the mean."""
    return ((first - second).square().mean().sqrt() / first.abs().mean().clamp(min=1e-9)).item()


def apart(ev: TrainerSnapshot) -> Finding:
    """Check that a text's loss does not depend on what stands before it or beside it."""
    if ev.kind != kinds.CAUSAL:
        return SILENT
    if ev.no_step:
        return not_judged(ev.no_step) if ev.packing else SILENT
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        ev.model.train()
        try:
            if found := _packed(ev):
                return _leak(ev, *found)
            if padded := _padded(ev):
                return _padding(ev, *padded)
        except Exception as error:  # some models do not support a plain forward pass
            return not_judged(f"{type(error).__name__}: {error}"[:200])
    return SILENT


def _leak(ev: TrainerSnapshot, batch: Mapping[str, Any], start: int) -> Finding:
    share = _difference(*_changed(ev, batch, start))
    if math.isnan(share):
        return not_judged("see loss and gradients")
    told = f"with other texts before it, a packed text's losses move by {share:.1e} of their mean"
    if share <= _tolerance(ev, _BEFORE):
        return Finding(PASS, told)
    if ev.packing == "wrapped":
        return Finding(
            WARN,
            f"{told}: texts attend to those before them, as in pre-training",
            "Set packing_strategy='bfd', which keeps them apart, or packing=False.",
        )
    name = type(ev.base).__name__
    return Finding(
        WARN,
        f"{told}: {name} lets packed texts attend to each other (or carries their state on)",
        "Set packing=False (and padding_free=False), or take a model whose attention follows "
        "position_ids.",
    )


def _padding(ev: TrainerSnapshot, batch: Mapping[str, Any], document: Document) -> Finding:
    share = _difference(*_alone(ev, batch, document))
    if math.isnan(share):
        return not_judged("see loss and gradients")
    told = f"without the padding beside it, a text's losses move by {share:.1e} of their mean"
    if share <= _tolerance(ev, _BESIDE):
        return Finding(PASS, told)
    left = not document.read[0]
    return Finding(
        WARN,
        f"{told}: the model attends to the padding, or counts its positions",
        "Set tokenizer.padding_side = 'right' for training."
        if left
        else "Keep the attention_mask in the batch, and take a collator that pads on the right.",
    )
