"""What loading a quantized model leaves on the GPU: simulated from `from_pretrained` on.

Weights come one by one in 16 bits, are quantized on the GPU and released. The gaps that this leaves
decide how much memory is reserved later, and now and then an allocated block is a little larger
than its tensor. Weights that are not quantized are moved to the GPU as they are and leave no gaps.

Sources, of the versions installed: transformers' `modeling_utils.caching_allocator_warmup`,
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
KEPT_FREE = int(1.2 * 2**30)  # of the GPU's memory, by the allocator's warm-up


@dataclass(frozen=True)
class Loaded:
    """A parameter as the checkpoint brings it.

    Attributes:
        name: its place in the model without an adapter.
        parameter: the same when training begins.
        size: bytes of its values on the GPU before they are quantized or cast.
        share: bytes that transformers expects of it in the end.
        layer: the quantized layer whose weight it is, or None.
    """

    name: str
    parameter: nn.Parameter
    size: int
    share: float
    layer: Any = None


def book(made: nn.Module, setup: Setup, tracker: Tracker, gpu: Gpu) -> bool:
    """Book the loading of a quantized model, with all that it takes for a moment.

    Args:
        made: the model with its adapter, as it is trained, on meta.
        setup: how it is trained.
        tracker: which books tensors.
        gpu: whose memory bounds the warm-up.

    Returns:
        Whether it was booked: not where nothing is quantized, and not with transformers 4, which
        loads in ways that are not followed.
    """
    loaded = _in_order(made, setup)
    if not loaded:
        return False
    # One block of the model's size, which is released at once and then cut up.
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
    """A model's parameters without those of its adapter, in the order in which they are loaded."""
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
    """Whether peft gives free memory back after its casts, as it does since 0.20."""
    from peft import prepare_model_for_kbit_training

    return "auto_clear_cache" in inspect.signature(prepare_model_for_kbit_training).parameters
