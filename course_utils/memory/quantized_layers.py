"""Quantized linear layers on meta tensors: they ask for memory as those of bitsandbytes do.

bitsandbytes' own kernels need a GPU, and their stand-ins for meta tensors leave sizes open. These
layers follow its Python code, operation by operation, in two generations: up to 0.44, where int8
matrices were rearranged for the GPU, and from 0.45 on. peft takes them for bitsandbytes' layers,
which they are by descent. Introduced in notebook 05.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from packaging.version import Version
from torch import nn

REARRANGES = Version(bnb.__version__) < Version("0.45")
THRESHOLD = 6.0  # transformers' llm_int8_threshold
BLOCK = 64  # values that share a scale in 4 bits
NESTED_BLOCK = 256  # scales that share a scale in double quantization


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _quantize_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`int8_vectorwise_quant` where no value reaches the threshold for outliers."""
    scales = _empty(values.shape[0], dtype=torch.float32)
    codes = _empty(*values.shape, dtype=torch.int8)
    outliers = values.abs() >= THRESHOLD
    outliers.any()
    return codes, scales


def _quantize_both(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`double_quant` of bitsandbytes up to 0.44: by rows and by columns."""
    rows, columns = values.shape
    row_scales, column_scales = (_empty(n, dtype=torch.float32) for n in (rows, columns))
    tiles = -(-rows // 16) * 16 * -(-columns // 256)
    counts = _empty(tiles + 1, dtype=torch.int32)
    by_column, by_row = (_empty(rows, columns, dtype=torch.int8) for _ in range(2))
    del counts
    return by_row, by_column, row_scales, column_scales


class _Int8Matmul(torch.autograd.Function):
    """`MatMul8bitLt`: the input is kept on the context, so a backward pass does not free it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Linear8bit) -> torch.Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        rows, width = x.shape[0], layer.out_features
        if REARRANGES:
            codes, codes_t, scales, scales_t = _quantize_both(x.to(torch.float16))
            if layer.rearranged is None:
                layer.rearrange()
            tiled = _empty(rows, -(-x.shape[1] // 32) * 32, dtype=torch.int8)
            sums = _empty(rows, -(-width // 32) * 32, dtype=torch.int32)
            out = _empty(rows, width, dtype=torch.float16)
            new_scales = [_empty(n, dtype=torch.float32) for n in (rows, width)]
            del new_scales
            out = out.to(x.dtype)
            if layer.bias is not None and layer.bias.dtype != torch.float16:
                out = out.add_(layer.bias)
            kept = (codes_t, None, x, scales_t)
            del tiled, sums, codes, scales
        else:
            codes, scales = _quantize_rows(x.to(torch.float16))
            out = _scaled_product(codes, layer, x.dtype)
            kept = (None, _empty(0, dtype=x.dtype), x, None)
            del codes, scales
        ctx.layer, ctx.shape, ctx.dtype = layer, shape, x.dtype
        ctx.kept = kept if ctx.needs_input_grad[0] else None
        out = out.view(*shape[:-1], width)
        return out.clone() if REARRANGES and len(shape) == 3 else out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        if REARRANGES:
            quantized = _quantize_both(gradient.to(torch.float16))
            weight = _back_in_order(ctx.layer.rearranged)
            weight = weight.to(ctx.dtype).mul_(ctx.layer.scales.unsqueeze(1).mul(1 / 127))
            found = torch.matmul(gradient, weight).view(ctx.shape).to(ctx.dtype)
            del quantized
        else:
            weight = ctx.layer.weight.data.to(ctx.dtype, copy=True)
            weight = weight.mul_(ctx.layer.scales.unsqueeze(1).mul(1 / 127))
            found = torch.matmul(gradient.to(ctx.dtype), weight).view(ctx.shape)
        return found, None


def _scaled_product(codes: torch.Tensor, layer: Linear8bit, dtype: torch.dtype) -> torch.Tensor:
    """`int8_scaled_mm`: an int32 product, scaled to float16, then in the wanted dtype."""
    sums = _empty(codes.shape[0], layer.out_features, dtype=torch.int32)
    out = torch.empty_like(sums, dtype=torch.float16)
    if layer.bias is not None and layer.bias.dtype != torch.float16:
        out.add_(layer.bias)
    return out.to(dtype)


def _back_in_order(rearranged: torch.Tensor) -> torch.Tensor:
    """`undo_layout`: each step is a copy in int8."""
    rows, columns = rearranged.shape
    tiles = rearranged.reshape(-1, 1024).t()
    ordered = torch.empty_like(tiles).reshape(32, 32, columns // 32, rows // 32)
    return ordered.permute(3, 0, 2, 1).reshape(rows, columns).contiguous()


class Linear8bit(bnb.nn.Linear8bitLt):
    """LLM.int8() on meta: one byte a weight, a float32 scale a row."""

    def __init__(self, layer: nn.Linear):
        rows, columns = _shape(layer)
        super().__init__(
            columns,
            rows,
            bias=layer.bias is not None,
            has_fp16_weights=False,
            threshold=THRESHOLD,
            device="meta",
        )
        codes = _empty(rows, columns, dtype=torch.int8)
        self.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False)
        self.bias = layer.bias
        self.scales = _empty(rows, dtype=torch.float32)
        self.rearranged: torch.Tensor | None = None

    def held(self) -> list[torch.Tensor]:
        """What it holds beside its parameters."""
        return [self.scales]

    def rearrange(self) -> None:
        """What up to 0.44 the first forward pass does; the layer then keeps only the result."""
        rows, columns = (-(-n // 32) * 32 for n in self.weight.shape)
        self.rearranged = _empty(rows, columns, dtype=torch.int8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias.data = self.bias.data.to(x.dtype)
        out = _Int8Matmul.apply(x, self)
        if self.rearranged is not None and self.weight.data is not self.rearranged:
            self.weight.data = self.rearranged
        return out


class _Matmul4Bit(torch.autograd.Function):
    """`MatMul4Bit`: the weight is expanded for each multiplication, and nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Linear4bit, bias: Any) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.expanded(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return torch.matmul(gradient, ctx.layer.expanded().to(gradient.dtype)), None, None


class Linear4bit(bnb.nn.Linear4bit):
    """QLoRA's 4-bit layer on meta: half a byte a weight, and a scale for each 64."""

    def __init__(self, layer: nn.Linear, kind: str, double: bool, dtype: torch.dtype):
        rows, columns = _shape(layer)
        super().__init__(
            columns,
            rows,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            compress_statistics=double,
            quant_type=kind,
            device="meta",
        )
        values = rows * columns
        codes = _empty(-(-values // 2), 1, dtype=torch.uint8)
        self.weight = bnb.nn.Params4bit(
            codes, requires_grad=False, quant_type=kind, compress_statistics=double
        )
        self.bias = layer.bias
        blocks = -(-values // BLOCK)
        self.scales = [_empty(16, dtype=torch.float32)]  # the levels
        if double:
            nested = -(-blocks // NESTED_BLOCK)
            self.scales += [
                _empty(blocks, dtype=torch.uint8),
                _empty(nested, dtype=torch.float32),
                _empty(256, dtype=torch.float32),
                _empty(1, dtype=torch.float32),
            ]
        else:
            self.scales.append(_empty(blocks, dtype=torch.float32))
        self.double, self.blocks = double, blocks

    def held(self) -> list[torch.Tensor]:
        """What it holds beside its parameters."""
        return self.scales

    def expanded(self) -> torch.Tensor:
        """`dequantize_4bit`."""
        if self.double:
            scales = _empty(self.blocks, dtype=torch.float32)
            scales += self.scales[-1]
        return _empty(self.out_features, self.in_features, dtype=self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype
        x = x.to(self.compute_dtype)
        bias = self.bias
        if bias is not None:
            if bias.dtype != x.dtype:
                bias.data = bias.data.to(x.dtype)
            bias = bias.to(self.compute_dtype)
        return _Matmul4Bit.apply(x, self, bias).to(dtype)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Rows (outputs) and columns (inputs); GPT-2's Conv1D has them the other way round."""
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, nn.Linear) else (columns, rows)
