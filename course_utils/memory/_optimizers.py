"""Optimizers by the Trainer's names, and running those of bitsandbytes without a GPU.

Introduced in notebook 05.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from course_utils._core import checks
from course_utils.errors import ImpossibleSetup

# Optimizers that the Trainer has but that cannot be predicted, with the reason.
_LAYERWISE = "it updates weights inside the backward pass"
_REFUSED = {
    "adamw_torch_xla": "it is for TPUs",
    "adamw_torch_npu_fused": "it is for Ascend NPUs",
    "lomo": _LAYERWISE,
    "adalomo": _LAYERWISE,
}


@functools.cache
def known() -> tuple[str, ...]:
    """Return all names that `TrainingArguments` accepts as `optim`."""
    from transformers.training_args import OptimizerNames

    return tuple(name.value for name in OptimizerNames)


def check(name: Any) -> None:
    """Reject an optimizer that the Trainer does not have, or that cannot be predicted.

    Raises:
        UnknownName: there is no such optimizer.
        ImpossibleSetup: it needs another device, or updates weights in the backward pass.
    """
    checks.one_of("optimizer", name, known())
    why = _REFUSED.get(name) or (_LAYERWISE if name.endswith("_layerwise") else None)
    if why:
        raise ImpossibleSetup(f"optimizer is {name!r}, which cannot be predicted: {why}.")


def arguments(name: str) -> dict[str, Any]:
    """Return the further `TrainingArguments` that an optimizer needs, besides its name."""
    needs_targets = name.startswith(("galore", "apollo"))
    return {"optim": name} | ({"optim_target_modules": "all-linear"} if needs_targets else {})


def is_paged(name: str) -> bool:
    """Return whether optimizer states are in memory that is paged to the CPU when necessary."""
    return name.startswith("paged_")


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Run optimizers on meta tensors: their own code makes the states, no kernel is called.

    bitsandbytes' kernels work in place. Its paged states are in CUDA's managed memory, which
    PyTorch's allocator does not see (`bitsandbytes/functional.py`, `get_paged`).
    torch uses its multi-tensor ("foreach") code on a GPU by default
    (`torch/optim/optimizer.py`, `_default_to_fused_or_foreach`).
    """
    import bitsandbytes.functional
    import bitsandbytes.optim
    from bitsandbytes.optim import optimizer as bnb

    # torch.optim hides its modules behind functions of the same names.
    adam, optimizer = (importlib.import_module(f"torch.optim.{n}") for n in ("adam", "optimizer"))

    def nothing(*_: Any, **__: Any) -> None:
        return None

    supported = optimizer._get_foreach_kernels_supported_devices
    kept = [
        bnb.GlobalOptimManager.get_instance().module_weight_config_triple,
        bitsandbytes.functional.GlobalPageManager.get_instance().paged_tensors,
    ]
    lengths = [len(some) for some in kept]
    kinds = [bnb.Optimizer1State, bnb.Optimizer2State, *vars(bitsandbytes.optim).values()]
    changes = [
        (adam, "_device_dtype_check_for_fused", nothing),
        (optimizer, "_get_foreach_kernels_supported_devices", lambda: [*supported(), "meta"]),
        (bitsandbytes.functional, "get_paged", nothing),
        (bitsandbytes.functional, "fill", nothing),
        (bnb.Optimizer8bit, "prefetch_state", nothing),
        (torch.cuda, "synchronize", nothing),
        *(
            (kind, "update_step", nothing)
            for kind in kinds
            if isinstance(kind, type)
            and issubclass(kind, bnb.Optimizer8bit)
            and "update_step" in vars(kind)
        ),
    ]
    try:
        with contextlib.ExitStack() as patched:
            for target, name, value in changes:
                patched.enter_context(mock.patch.object(target, name, value))
            yield
    finally:
        for some, length in zip(kept, lengths, strict=True):
            del some[length:]  # otherwise bitsandbytes would keep what was only predicted
