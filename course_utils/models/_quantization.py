"""Quantization by short names, and a workaround for a bitsandbytes pitfall on some CPUs.

Used by `loading`; quantization is the subject of notebook 04.1.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from course_utils._core import checks

NAMES = ("8bit", "nf4", "nf4-double", "fp4", "fp4-double")

# Bytes per parameter of a quantized linear layer: the codes, and a float32 scale per block of 64
# (double quantization: 8 bits per scale, and a float32 per 256 scales).
BYTES_PER_PARAMETER = {
    "8bit": 1.0,
    "nf4": 0.5 + 4 / 64,
    "fp4": 0.5 + 4 / 64,
    "nf4-double": 0.5 + 1 / 64 + 4 / (64 * 256),
    "fp4-double": 0.5 + 1 / 64 + 4 / (64 * 256),
}


def quantization_config(name: str, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """Create the `quantization_config` for transformers.

    Args:
        name: one of `NAMES`: `"8bit"` (LLM.int8()), `"nf4"` or `"fp4"` (QLoRA's 4-bit types),
            with `-double` for double quantization, which quantizes the scales too.
        compute_dtype: the dtype to which 4-bit weights are dequantized for a multiplication.

    Raises:
        UnknownName: `name` is not one of `NAMES`.
        ValueError: `compute_dtype` is not a floating-point dtype of torch.

    Source: Dettmers et al., LLM.int8() (arXiv 2208.07339) and QLoRA (arXiv 2305.14314).
    """
    checks.one_of("quantization", name, NAMES)
    kind = checks.a("compute_dtype", compute_dtype, torch.dtype, "a dtype, such as torch.bfloat16")
    if not kind.is_floating_point:
        raise checks.refuse("compute_dtype", kind, "a floating-point dtype, such as torch.bfloat16")
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name.split("-")[0],
        bnb_4bit_use_double_quant=name.endswith("-double"),
        bnb_4bit_compute_dtype=compute_dtype,
    )


def check_quantization(given: str | BitsAndBytesConfig | None) -> None:
    """Refuse an invalid quantization.

    Raises:
        UnknownName: it is neither one of `NAMES`, nor a `BitsAndBytesConfig`, nor None.
    """
    if given is not None and not isinstance(given, BitsAndBytesConfig):
        checks.one_of("quantization", given, NAMES, "Or None, or a BitsAndBytesConfig.")


def keep_weights_trainable(model: nn.Module) -> int:
    """Stop bitsandbytes from repacking 4-bit weights for inference; return how many layers changed.

    On a CPU with AVX512_BF16, the first forward pass in eval mode converts each 4-bit weight to a
    layout that the backward pass cannot read: later training gets wrong gradients, without an
    error.
    """
    from bitsandbytes.nn import Linear4bit

    checks.a("model", model, nn.Module, "a model, as load_model gives it")
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)
