"""What libraries see in place of a GPU during a prediction. Introduced in notebook 05.

Nothing here changes what they compute; it only answers their questions about the device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn.utils import clip_grad

from course_utils.errors import ImpossibleSetup
from course_utils.memory import _cuda as cuda
from course_utils.memory._cuda import OnGpu


def _entering(checkpoint: Any, on_gpu: OnGpu) -> Any:
    """Wrap checkpointing so that a layer runs in the backward pass as it did in the forward."""

    def checkpointed(function: Any, *args: Any, **kwargs: Any) -> Any:
        @functools.wraps(function)
        def inside(*given: Any, **named: Any) -> Any:
            with on_gpu.active(), on_gpu.casting():
                return function(*given, **named)

        return checkpoint(inside, *args, **kwargs)

    return checkpointed


class _Kernel:
    """Stands in for a Triton kernel of TRL's loss, which writes into existing tensors."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *_, **__: None


@contextlib.contextmanager
def fused_head_on_gpu() -> Iterator[None]:
    """Make TRL's fused LM head run as on a GPU with Triton, with the tiles of its own code.

    Source: `trl/kernels/chunked_logprob.py`: its two kernels load and store, and allocate nothing;
    gradients are added up by `torch.addmm(..., out_dtype=torch.float32, out=...)`, which casts
    inside the product.
    """
    try:
        from trl.kernels import chunked_logprob
        from trl.trainer import utils
    except ImportError:  # no TRL, or a version without the fused head
        yield
        return

    def yes(_: Any) -> bool:
        return True

    def nothing(*_: Any) -> None:
        return None

    cdiv = types.SimpleNamespace(cdiv=lambda number, by: -(-number // by))
    with contextlib.ExitStack() as patched:
        for target, name, value in (
            (chunked_logprob, "_use_triton", yes),
            (utils, "_use_triton", yes),
            (chunked_logprob, "_forward_kernel", _Kernel()),
            (chunked_logprob, "_backward_kernel", _Kernel()),
            (chunked_logprob, "_addmm_fp32", nothing),
            (chunked_logprob, "triton", cdiv),
        ):
            patched.enter_context(mock.patch.object(target, name, value, create=name == "triton"))
        yield


@contextlib.contextmanager
def devices_on_meta() -> Iterator[None]:
    """Make libraries accept meta as a device when they ask about a tensor's device."""
    from transformers import TrainingArguments

    def on_meta(args: Any) -> torch.device:
        args._setup_devices  # noqa: B018  it also sets up the rest of accelerate's state
        return torch.device("meta")

    asked, dtype_of = torch.is_autocast_enabled, torch.get_autocast_dtype

    def is_autocast_enabled(device: str | None = None) -> bool:
        return asked("cuda" if device in (None, "meta") else device)

    def get_autocast_dtype(device: str) -> torch.dtype:
        return dtype_of("cuda" if device == "meta" else device)

    with (
        mock.patch.object(TrainingArguments, "device", property(on_meta)),
        mock.patch.object(torch, "is_autocast_enabled", is_autocast_enabled),
        mock.patch.object(torch, "get_autocast_dtype", get_autocast_dtype),
    ):
        yield


@contextlib.contextmanager
def _modules(given: dict[str, types.ModuleType]) -> Iterator[None]:
    """Provide modules that are not installed; anything imported meanwhile stays imported."""
    before = {name: sys.modules.get(name) for name in given}
    for name, module in given.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)  # libraries look for it
    sys.modules.update(given)
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = earlier


@contextlib.contextmanager
def flash_attention_chosen() -> Iterator[None]:
    """Allow a model to be made with FlashAttention 2 without its package.

    Raises:
        ImpossibleSetup: transformers has no FlashAttention for this model.
    """
    from transformers import PreTrainedModel
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    def take_it(model: Any, implementation: str, *_: Any, **__: Any) -> str:
        if not model._supports_flash_attn:
            raise ImpossibleSetup(f"{type(model).__name__} has no FlashAttention in transformers.")
        # Some models import the function only if the package is installed.
        vars(sys.modules[type(model).__module__]).setdefault(
            "_flash_attention_forward", _flash_attention_forward
        )
        return implementation

    with mock.patch.object(PreTrainedModel, "_check_and_adjust_attn_implementation", take_it):
        yield


@contextlib.contextmanager
def as_on_gpu(on_gpu: OnGpu) -> Iterator[None]:
    """Make libraries that ask about the device find what they would find on a GPU."""
    import transformers.modeling_flash_attention_utils as flash
    from transformers import modeling_utils

    stand_in: Any = types.ModuleType("flash_attn")
    stand_in.flash_attn_func = cuda.flash_attn_func
    stand_in.flash_attn_varlen_func = cuda.flash_attn_varlen_func
    stand_in.flash_attn_with_kvcache = None
    padding = types.ModuleType("flash_attn.bert_padding")
    for name in ("pad_input", "unpad_input"):
        setattr(padding, name, getattr(flash, f"_{name}", None))
    autocast = torch.autocast

    def autocast_or_pause(device_type: str, *args: Any, **kwargs: Any) -> Any:
        if device_type != "meta":
            return autocast(device_type, *args, **kwargs)
        return contextlib.nullcontext() if kwargs.get("enabled", True) else on_gpu.paused()

    with (
        mock.patch.object(torch, "autocast", autocast_or_pause),
        mock.patch.object(clip_grad, "_device_has_foreach_support", return_value=True),
        mock.patch.object(
            modeling_utils, "checkpoint", _entering(modeling_utils.checkpoint, on_gpu)
        ),
        fused_head_on_gpu(),
        _modules({"flash_attn": stand_in, "flash_attn.bert_padding": padding}),
        mock.patch.object(flash, "is_flash_attn_2_available", return_value=True),
        contextlib.ExitStack() as kept,
    ):
        # Restore what transformers has cached about the package, for training on a real GPU.
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
