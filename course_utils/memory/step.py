"""The training loop whose memory is predicted and measured. Introduced in notebook 05."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from course_utils.memory.setup import Setup

MAX_GRAD_NORM = 1.0  # the Trainer's


def train(
    setup: Setup,
    model: nn.Module,
    optimizer: Any,
    parameters: list[nn.Parameter],
    batch: Callable[[], dict[str, torch.Tensor]],
    phase: Callable[[str], None],
    autocast: Callable[[], AbstractContextManager],
    scaler: Any = None,
) -> None:
    """Run the setup's micro-batches, with an optimizer step after every `accumulation` of them.

    Args:
        setup: what is trained.
        model, optimizer, parameters: as `build` makes them.
        batch: gives the next micro-batch, on the model's device.
        phase: told what begins: "forward", "backward" or "optimizer".
        autocast: a context for the forward pass.
        scaler: a gradient scaler, for mixed precision in float16 on a GPU.
    """

    def forward() -> Any:
        phase("forward")
        with autocast():
            outputs = model(**batch())
        wrapped = setup.mixed_precision and setup.loop == "trainer"
        return _in_float32(outputs) if wrapped else outputs

    def backward(loss: torch.Tensor) -> None:
        phase("backward")
        (scaler.scale(loss) if scaler else loss).backward()

    def one_for_the_trainer() -> None:
        # What compute_loss leaves of the outputs is the loss.
        loss = forward()["loss"]
        if setup.accumulation > 1:
            loss = loss / setup.accumulation
        backward(loss)

    for number in range(1, setup.runs + 1):
        if setup.loop == "trainer":
            one_for_the_trainer()
        else:
            outputs = forward()
            loss = (
                outputs["loss"] / setup.accumulation if setup.accumulation > 1 else outputs["loss"]
            )
            backward(loss)
        if number % setup.accumulation == 0:
            phase("optimizer")
            if scaler:
                scaler.unscale_(optimizer)
            if setup.loop == "trainer":
                nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()


def _in_float32(outputs: Any) -> Any:
    """What accelerate does to a model's outputs in mixed precision: 16 bits become 32."""
    from accelerate.utils.operations import convert_to_fp32

    return convert_to_fp32(outputs)
