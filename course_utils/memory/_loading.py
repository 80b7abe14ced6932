"""Simulate `from_pretrained` for a quantized model, and what it leaves on the GPU.

Weights arrive one by one in 16 bits, are quantized on the GPU and released. The resulting gaps
determine how much memory is reserved later, and occasionally an allocated block is slightly larger
than its tensor. Weights that are not quantized are moved to the GPU unchanged and leave no gaps.

Sources, in the versions installed: transformers' `modeling_utils.caching_allocator_warmup`,
`core_model_loading.convert_and_load_state_dict_in_model` and
`integrations/bitsandbytes.py`; bitsandbytes' `nn/modules.py`; peft's
`prepare_model_for_kbit_training`. Introduced in notebook 05.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from course_utils.memory import _build as build

if TYPE_CHECKING:
    from course_utils.memory._gpus import Gpu
    from course_utils.memory._setup import Setup
    from course_utils.memory._tracker import Tracker

MIB = 2**20
KEPT_FREE = int(1.2 * 2**30)  # GPU memory that the allocator's warm-up leaves free


@dataclass(frozen=True)
class Loaded:
    """A parameter as loaded from the checkpoint.

    Attributes:
        name: its name in the model without an adapter.
        parameter: the same parameter when training begins.
        size: bytes of its values on the GPU before they are quantized or cast.
        share: bytes that transformers expects it to take in the end.
        layer: the quantized layer whose weight it is, or None.
    """

    name: str
    parameter: nn.Parameter
    size: int
    share: float
    layer: Any = None


def book(made: nn.Module, setup: Setup, tracker: Tracker, gpu: Gpu) -> bool:
    """Record the loading of a quantized model, including temporary memory.

    Args:
        made: the model with its adapter, as trained, on meta.
        setup: how it is trained.
        tracker: records the tensors.
        gpu: its memory limits the warm-up.

    Returns:
        Whether loading was recorded: not if nothing is quantized, nor with transformers 4, whose
        way of loading is not modelled.
    """
    loaded = _in_order(made, setup)
    if not loaded:
        return False
    # One block of the model's size, released at once and then split up.
    expected = min(sum(one.share for one in loaded), gpu.process_mib * MIB - KEPT_FREE)
    tracker.take(max(0, int(expected // 2) * 2), "caching_allocator_warmup")()
    waiting: dict[int, Callable[[], None]] = {}
    for one in loaded:
        size = one.parameter.numel() * one.parameter.element_size()
        if one.layer is None and size == one.size:
            tracker.hold(one.parameter)
            continue
        release = tracker.take(one.size, "from_pretrained")
        if one.layer is None:  # it will be cast
            waiting[id(one.parameter)] = release
            continue
        one.layer.book_quantized(tracker)
        release()
    for buffer in made.buffers():  # those that are in no checkpoint come last
        tracker.hold(buffer)
    for parameter in made.parameters():
        if waits := waiting.pop(id(parameter), None):
            tracker.hold(parameter)
            waits()
    if setup.prepares and _empties_cache():
        tracker.allocator.empty_cache()
    return True


def _in_order(made: nn.Module, setup: Setup) -> list[Loaded]:
    """Return a model's parameters, without its adapter's, in the order in which they are loaded."""
    try:
        from transformers.core_model_loading import dot_natural_key
    except ImportError:
        return []
    layers = {
        id(module.weight): module for module in made.modules() if hasattr(module, "book_quantized")
    }
    if not layers:
        return []
    item_bytes = build.DTYPES[setup.dtype].itemsize
    found = []
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:  # the rest is frozen when a model is quantized
            continue
        name = name.replace("base_model.model.", "").replace(".base_layer", "")
        layer = layers.get(id(parameter))
        if layer is None:
            bytes_each = item_bytes if setup.prepares else parameter.element_size()
            size = parameter.numel() * bytes_each
            found.append(Loaded(name, parameter, size, size))
        else:
            values = layer.in_features * layer.out_features
            share = values * layer.expected_bytes
            found.append(Loaded(name, parameter, values * item_bytes, share, layer))
    return sorted(found, key=lambda one: dot_natural_key(one.name))


def _empties_cache() -> bool:
    """Return whether peft empties the cache after its casts, as it does since 0.20."""
    from peft import prepare_model_for_kbit_training

    return "auto_clear_cache" in inspect.signature(prepare_model_for_kbit_training).parameters
