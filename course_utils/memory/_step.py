"""The training steps whose memory is predicted and measured. Introduced in notebook 05."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from course_utils.memory._setup import Setup

Batch = Callable[[], dict[str, Any]]
Phase = Callable[[str], None]


def with_trainer(trainer: Any, batch: Batch, phase: Phase, runs: int, accumulation: int) -> None:
    """Run micro-batches with a trainer's own `training_step`, in the order of `Trainer._run_epoch`.

    Args:
        trainer: a trainer with its optimizer created; its model may be wrapped.
        batch: returns the next micro-batch, on the model's device.
        phase: called when a phase begins: "forward", "backward" or "optimizer".
        runs: how many micro-batches.
        accumulation: micro-batches per optimizer step.
    """
    model = trainer.model_wrapped
    backward = trainer.accelerator.backward

    def noted(loss: torch.Tensor, **options: Any) -> None:
        phase("backward")
        backward(loss, **options)

    trainer.accelerator.backward = noted
    trainer.current_gradient_accumulation_steps = accumulation
    try:
        phase("forward")
        total = torch.zeros((), device=trainer.args.device)
        for first in range(0, runs, accumulation):
            phase("forward")
            batches = [batch() for _ in range(min(accumulation, runs - first))]
            items = trainer._get_num_items_in_batch(batches, trainer.args.device)
            for number, inputs in enumerate(batches, 1):
                phase("forward")
                with _unreduced(model) if number < len(batches) else contextlib.nullcontext():
                    loss = trainer.training_step(model, inputs, items)
                total += loss
            if len(batches) < accumulation:
                return
            phase("optimizer")
            if trainer.args.max_grad_norm > 0:
                norm = trainer._clip_grad_norm(model)  # noqa: F841  the Trainer keeps it, too
            trainer.optimizer.step()
            model.zero_grad()
    finally:
        del trainer.accelerator.backward


def by_hand(
    setup: Setup,
    model: nn.Module,
    optimizer: Any,
    batch: Batch,
    phase: Phase,
    autocast: Callable[[], AbstractContextManager],
    scaler: Any = None,
) -> None:
    """Run micro-batches in a typical hand-written loop, without gradient clipping.

    Args:
        setup: what is trained.
        model, optimizer: to train.
        batch, phase: as in `with_trainer`.
        autocast: a context for the forward pass.
        scaler: a gradient scaler, for mixed precision in float16 on a GPU.
    """
    for number in range(1, setup.runs + 1):
        last = number % setup.accumulation == 0
        phase("forward")
        with contextlib.nullcontext() if last else _unreduced(model):
            with autocast():
                outputs = model(**batch())
            loss = outputs["loss"]
            if not setup.keep_outputs:
                outputs = None
            if setup.accumulation > 1:
                loss = loss / setup.accumulation
            phase("backward")
            (scaler.scale(loss) if scaler else loss).backward()
        if not setup.keep_outputs:
            loss = None
        if last:
            phase("optimizer")
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()
        outputs = loss = None  # outputs are kept until here


@contextlib.contextmanager
def _unreduced(model: nn.Module) -> Iterator[None]:
    """Context of a micro-batch whose gradients stay on their GPU, as in `Accelerator.no_sync`."""
    if synchronise := getattr(model, "set_requires_gradient_sync", None):  # FSDP2
        synchronise(False)
        try:
            yield
        finally:
            synchronise(True)
        return
    with getattr(model, "no_sync", contextlib.nullcontext)():  # DDP
        yield
