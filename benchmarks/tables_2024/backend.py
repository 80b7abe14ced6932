"""`BACKEND`: the libraries of November 2024, as the predictor asks for them. Import it first.

`course_utils.memory` follows today's libraries. Here is what those of that time did otherwise:
transformers 4.46 (an attention is a class, chosen when a model is made), bitsandbytes 0.44 (int8
matrices are rearranged for the GPU), PyTorch before 2.5 (math attention stays in 16 bits).
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
import types
from typing import Any

import torch
import transformers.utils
from transformers.utils import import_utils

from course_utils.memory import _cuda as cuda

for _module in (transformers.utils, import_utils):
    _module.is_flash_attn_2_available = lambda: True
    _module.is_flash_attn_greater_or_equal_2_10 = lambda: True
    _module.is_flash_attn_greater_or_equal = lambda _: True
_flash = types.ModuleType("flash_attn")
_flash.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
_flash.flash_attn_func = cuda.flash_attn_func
_flash.flash_attn_varlen_func = cuda.flash_attn_varlen_func
_padding = types.ModuleType("flash_attn.bert_padding")  # no example of the tables is padded
_padding.index_first_axis = _padding.pad_input = _padding.unpad_input = None
_rotary = types.ModuleType("flash_attn.layers.rotary")
_rotary.apply_rotary_emb = None
sys.modules |= {
    "flash_attn": _flash,
    "flash_attn.bert_padding": _padding,
    "flash_attn.layers": types.ModuleType("flash_attn.layers"),
    "flash_attn.layers.rotary": _rotary,
}

from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: E402
from transformers.integrations import get_keys_to_not_convert  # noqa: E402

from course_utils.memory import _build, _quantized_layers  # noqa: E402
from course_utils.memory._quantized_layers import empty  # noqa: E402


def _enable_flash(cls: Any, config: Any, *_: Any, hard_check_only: bool = False, **__: Any) -> Any:
    if not hard_check_only:
        config._attn_implementation = "flash_attention_2"
    return config


def _quantize_both(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`double_quant`: int8 by rows and by columns, where no value reaches the threshold."""
    rows, columns = values.shape
    row_scales, column_scales = (empty(n, dtype=torch.float32) for n in (rows, columns))
    counts = empty(-(-rows // 16) * 16 * -(-columns // 256) + 1, dtype=torch.int32)
    by_column, by_row = (empty(rows, columns, dtype=torch.int8) for _ in range(2))
    del counts
    return by_row, by_column, row_scales, column_scales


def _back_in_order(rearranged: torch.Tensor) -> torch.Tensor:
    """`undo_layout`: each step is a copy in int8."""
    rows, columns = rearranged.shape
    tiles = rearranged.reshape(-1, 1024).t()
    ordered = torch.empty_like(tiles).reshape(32, 32, columns // 32, rows // 32)
    return ordered.permute(3, 0, 2, 1).reshape(rows, columns).contiguous()


class _Int8Matmul(torch.autograd.Function):
    """`MatMul8bitLt` of 0.44: input and its int8 columns stay on the context."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        rows, width = x.shape[0], layer.out_features
        codes, codes_t, scales, scales_t = _quantize_both(x.to(torch.float16))
        if layer.rearranged is None:
            layer.rearrange()
        tiled = empty(rows, -(-x.shape[1] // 32) * 32, dtype=torch.int8)
        sums = empty(rows, -(-width // 32) * 32, dtype=torch.int32)
        out = empty(rows, width, dtype=torch.float16)
        out = out.to(x.dtype)
        if layer.bias is not None and layer.bias.dtype != torch.float16:
            out = out.add_(layer.bias)
        del tiled, sums, codes, scales
        ctx.layer, ctx.shape, ctx.dtype = layer, shape, x.dtype
        ctx.kept = (codes_t, x, scales_t) if ctx.needs_input_grad[0] else None
        out = out.view(*shape[:-1], width)
        return out.clone() if len(shape) == 3 else out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        quantized = _quantize_both(gradient.to(torch.float16))
        weight = _back_in_order(ctx.layer.rearranged)
        weight = weight.to(ctx.dtype).mul_(ctx.layer.scales.unsqueeze(1).mul(1 / 127))
        found = torch.matmul(gradient, weight).view(ctx.shape).to(ctx.dtype)
        del quantized
        return found, None


class Linear8bit(_quantized_layers.Linear8bit):
    """The layer of 0.44 on meta."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__(layer)
        self.rearranged: torch.Tensor | None = None

    def rearrange(self) -> None:
        """What the first forward pass does; the layer then keeps only the result."""
        rows, columns = (-(-n // 32) * 32 for n in self.weight.shape)
        self.rearranged = empty(rows, columns, dtype=torch.int8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As up to 0.44."""
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias.data = self.bias.data.to(x.dtype)
        out = _Int8Matmul.apply(x, self)
        if self.weight.data is not self.rearranged:
            self.weight.data = self.rearranged
        return out


class LibrariesOf2024(_build.Backend):
    """What transformers 4.46 and bitsandbytes 0.44 do otherwise than today's."""

    def from_config(self, config: Any, attention: str | None, dtype: torch.dtype) -> Any:
        """The dtype had another name."""
        chosen = {} if attention is None else {"attn_implementation": attention}
        return AutoModelForCausalLM.from_config(config, torch_dtype=dtype, **chosen)

    def flash_attention(self) -> contextlib.AbstractContextManager:
        """What this module sets at its import is enough."""
        return contextlib.nullcontext()

    def kept_whole(self, made: torch.nn.Module) -> list[str]:
        """The function was elsewhere."""
        return get_keys_to_not_convert(made)

    def quantized_layer(self, layer: torch.nn.Module, name: str, dtype: torch.dtype) -> Any:
        """8 bits as 0.44 has them."""
        if name == "8bit":
            return Linear8bit(layer)
        return super().quantized_layer(layer, name, dtype)


BACKEND = LibrariesOf2024()
PreTrainedModel._check_and_enable_flash_attn_2 = classmethod(_enable_flash)
# The upcast of math attention came with PyTorch 2.5.
torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
