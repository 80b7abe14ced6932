"""What libraries find in place of a GPU while a training is predicted. Introduced in notebook 05.

Nothing here changes what they compute; it answers what they ask about the device.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.utils import clip_grad

from course_utils.errors import ImpossibleSetup
from course_utils.memory import cuda
from course_utils.memory.cuda import OnGpu


def enter_when_recomputed(made: nn.Module, on_gpu: OnGpu) -> None:
    """A checkpointed layer runs again in the backward pass, where the function mode is not on."""

    def entering(function: Any) -> Any:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with on_gpu.active(), on_gpu.casting():
                return function(*args, **kwargs)

        return inside

    for module in made.modules():
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if checkpoint is not None:

            def wrapped(function: Any, *args: Any, _checkpoint: Any = checkpoint, **kwargs: Any):
                return _checkpoint(entering(function), *args, **kwargs)

            module._gradient_checkpointing_func = wrapped


@contextlib.contextmanager
def flash_attention_chosen() -> Iterator[None]:
    """Let a model be made with FlashAttention 2 where its package is not installed.

    Raises:
        ImpossibleSetup: transformers has no FlashAttention for this model.
    """
    from transformers import PreTrainedModel
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    def take_it(model: Any, implementation: str, *_: Any, **__: Any) -> str:
        if not model._supports_flash_attn:
            raise ImpossibleSetup(f"{type(model).__name__} has no FlashAttention in transformers.")
        # Some models import the function only where the package is.
        vars(sys.modules[type(model).__module__]).setdefault(
            "_flash_attention_forward", _flash_attention_forward
        )
        return implementation

    with mock.patch.object(PreTrainedModel, "_check_and_adjust_attn_implementation", take_it):
        yield


def fused_on_meta() -> contextlib.AbstractContextManager:
    """Let the fused AdamW take meta tensors, for which torch has its kernel's shapes."""
    return mock.patch.object(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused")


@contextlib.contextmanager
def as_on_gpu(on_gpu: OnGpu) -> Iterator[None]:
    """Let libraries that ask about the device find what they would find on a GPU."""
    import transformers.modeling_flash_attention_utils as flash

    stand_in = types.ModuleType("flash_attn")
    stand_in.flash_attn_func = cuda.flash_attn_func
    stand_in.flash_attn_varlen_func = cuda.flash_attn_varlen_func
    stand_in.flash_attn_with_kvcache = None
    padding = types.ModuleType("flash_attn.bert_padding")
    for name in ("pad_input", "unpad_input"):
        setattr(padding, name, getattr(flash, f"_{name}", None))
    asked, dtype_of = torch.is_autocast_enabled, torch.get_autocast_dtype

    def is_autocast_enabled(device: str | None = None) -> bool:
        return asked("cuda" if device in (None, "meta") else device)

    def get_autocast_dtype(device: str) -> torch.dtype:
        return dtype_of("cuda" if device == "meta" else device)

    autocast = torch.autocast

    def autocast_or_pause(device_type: str, *args: Any, **kwargs: Any) -> Any:
        if device_type != "meta":
            return autocast(device_type, *args, **kwargs)
        return contextlib.nullcontext() if kwargs.get("enabled", True) else on_gpu.paused()

    with (
        mock.patch.object(torch, "autocast", autocast_or_pause),
        mock.patch.object(clip_grad, "_device_has_foreach_support", return_value=True),
        fused_on_meta(),
        mock.patch.dict(sys.modules, {"flash_attn": stand_in, "flash_attn.bert_padding": padding}),
        mock.patch.object(flash, "is_flash_attn_2_available", return_value=True),
        mock.patch.object(torch, "is_autocast_enabled", is_autocast_enabled),
        mock.patch.object(torch, "get_autocast_dtype", get_autocast_dtype),
        contextlib.ExitStack() as kept,
    ):
        # What transformers remembers of the package is put back, for trainings on a real GPU.
        for name in _REMEMBERED:
            if hasattr(flash, name):
                value = None if name == "_loaded_implementation" else getattr(flash, name)
                kept.enter_context(mock.patch.object(flash, name, value))
        if hasattr(flash, "lazy_import_flash_attention"):
            flash.lazy_import_flash_attention("flash_attention_2")
        yield


_REMEMBERED = (
    "_loaded_implementation",
    "_flash_fn",
    "_flash_varlen_fn",
    "_flash_with_kvcache_fn",
    "_pad_fn",
    "_unpad_fn",
    "_process_flash_kwargs_fn",
    "_process_with_kvcache_kwargs_fn",
)
