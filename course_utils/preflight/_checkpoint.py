"""Check whether a model's weights are those of the checkpoint it was loaded from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import nn

# This many values are enough to recognise a tensor.
_FIRST = 16


def _files(name: str) -> list[Path]:
    """List the weight files in a folder or the hub's cache; nothing is downloaded."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            config = try_to_load_from_cache(name, "config.json")
        except ValueError:  # neither a folder nor a model id
            return []
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return sorted(folder.glob("*.safetensors"))


def _saved(files: list[Path]) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Yield the shape and the first values of each saved tensor."""
    for path in files:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (no dictionary)
                part = weights.get_slice(name)
                shape = tuple(part.get_shape())
                if len(shape) == 2:
                    yield shape, part[:1].flatten()[:_FIRST].float()


def not_loaded(model: nn.Module) -> tuple[int, int] | None:
    """Count the model's matrices that are not in its checkpoint, and those looked for.

    Matrices are compared by value, as names may change on loading. Returns None if there is no
    checkpoint to compare with, or if all but a few matrices are found in it.
    """
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    files = _files(name) if name else []
    if not files:
        return None
    try:
        known: dict[int, list[torch.Tensor]] = {}
        for shape, numbers in _saved(files):
            known.setdefault(shape[1], []).append(numbers)
    except (OSError, SafetensorError):
        return None
    looked = lost = 0
    adapted = hasattr(model, "peft_config") or any(
        "lora_" in n for n, _ in model.named_parameters()
    )
    for parameter in model.parameters():
        if adapted and parameter.requires_grad:
            continue
        if parameter.dim() != 2 or not parameter.is_floating_point() or parameter.is_meta:
            continue
        looked += 1
        first = parameter.detach()[:1].flatten()[:_FIRST].float().cpu()
        if first.isnan().any():
            continue  # left to another check
        there = known.get(parameter.shape[1], ())  # embeddings may have been resized
        # A lower-precision dtype rounds the values.
        lost += not any(torch.allclose(first, other, rtol=0.02, atol=1e-6) for other in there)
    return (lost, looked) if lost else None
