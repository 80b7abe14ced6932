"""Try one training step: forward and backward pass as in the trainer, then undo it."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import Trainer

from course_utils._core.undisturbed import random_state_kept

# Like float16's loss scaling, keeps small gradients from becoming 0; 2^10 cannot overflow.
_FP16_SCALE = 2.0**10
# What TRL's trainers accumulate in place while they compute a loss.
_COLLECTED = ("_metrics", "_logs", "_pending_extra_logs", "_pending_metrics")


@dataclass(frozen=True)
class Step:
    """One forward and backward pass.

    `norms` holds the gradient norm by adapter, or by parameter if there is no adapter; NaN if no
    gradient arrived. `timed` holds, for each timed batch, its number of tokens including padding
    and its seconds.
    """

    loss: float = math.nan
    norms: dict[str, float] = field(default_factory=dict)
    timed: tuple[tuple[int, float], ...] = ()
    error: str = ""


class _NoDropout(TorchFunctionMode):
    """Turns dropout into the identity, with the model still in training mode.

    Evaluation mode would do so too, but make bitsandbytes repack 4-bit weights on a CPU.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d"):
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention" and len(args) < 5:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def without_dropout() -> contextlib.AbstractContextManager[Any]:
    """Make repeated passes over a batch give the same result."""
    return _NoDropout()


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def norm(parameters: list[nn.Parameter]) -> float:
    """Return the gradient norm of some parameters; NaN if none of them has a gradient."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return math.nan
    return math.hypot(*(torch.linalg.vector_norm(g, dtype=torch.float32).item() for g in gradients))


def loss_of(trainer: Trainer, batch: Any, items: Any = None) -> torch.Tensor:
    """Compute the trainer's own loss for a batch, in its mixed precision, with a graph."""
    inputs = trainer._prepare_inputs(copy.copy(batch))
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        return trainer.compute_loss(trainer.model, inputs, num_items_in_batch=items)


def one_pass(
    trainer: Trainer, batch: Any, trained: list[nn.Parameter], *, release: bool = True
) -> tuple[float, float]:
    """Run a forward and backward pass as the trainer does; return the loss and the seconds."""
    device = trainer.args.device
    for parameter in trained:
        parameter.grad = None
    trainer.current_gradient_accumulation_steps = 1  # as for an update of one batch
    fp16 = trainer.accelerator.mixed_precision == "fp16"
    offload = getattr(trainer, "maybe_activation_offload_context", contextlib.nullcontext())
    items = None
    if isinstance(batch, Mapping):
        _, items = trainer.get_batch_samples(iter([batch]), 1, device)
    trainer.model.train()
    wait(device)
    start = time.perf_counter()
    with offload:
        loss = loss_of(trainer, batch, items)
        (loss * _FP16_SCALE if fp16 else loss).backward()
    wait(device)
    seconds = time.perf_counter() - start
    for parameter in trained:
        if release:
            parameter.grad = None
        elif fp16 and parameter.grad is not None:
            parameter.grad /= _FP16_SCALE
    return loss.item(), seconds


def accumulated(trainer: Trainer, batches: list[Any], trained: list[nn.Parameter]) -> float:
    """Accumulate the batches' gradients in the parameters as one update; return the loss."""
    for parameter in trained:
        parameter.grad = None
    samples, items = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    trainer.model.train()
    losses = []
    for batch in samples:
        losses.append(trainer.training_step(trainer.model, copy.copy(batch), items).item())
    return sum(losses)


@contextlib.contextmanager
def checkpointing(trainer: Trainer) -> Iterator[None]:
    """Enable gradient checkpointing as `train` will: it makes a step slower."""
    args, model = trainer.args, trainer.model
    # Older versions of transformers, and its modules, call it "gradient" checkpointing.
    wanted = any(
        getattr(args, f"{what}_checkpointing", False) for what in ("activation", "gradient")
    )
    if not wanted or any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    ):
        yield
        return
    names = ["gradient_checkpointing", "_gradient_checkpointing_func"]
    names += ["_require_grads_hook", "_require_grads_hooks"]
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
def left_as_found(trainer: Trainer) -> Iterator[None]:
    """Restore what a step changes: modes, gradients, buffers, random states, the trainer."""
    model = trainer.model
    attributes = dict(vars(trainer))
    for name in _COLLECTED:
        if name in attributes:
            setattr(trainer, name, copy.deepcopy(attributes[name]))
    state = dict(vars(trainer.state))
    loaders = list(trainer.accelerator._dataloaders)
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = {module: dict(module._buffers) for module in model.modules() if module._buffers}
    values = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    device = trainer.args.device
    gpus = [device.index or 0] if device.type == "cuda" else []
    # Existing gradients would be added to.
    for parameter in gradients:
        parameter.grad = None
    try:
        with random_state_kept(gpus):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, own in buffers.items():
            module._buffers.update(own)  # some are replaced, others modified in place
        with torch.no_grad():
            for buffer, value in values.items():
                buffer.copy_(value)
        vars(trainer).clear()
        vars(trainer).update(attributes)
        vars(trainer.state).clear()
        vars(trainer.state).update(state)
        trainer.accelerator._dataloaders[:] = loaders
