"""Quantized linear layers on meta tensors that request memory as those of bitsandbytes do.

bitsandbytes' own kernels need a GPU, and their stand-ins for meta tensors leave sizes open. These
layers follow its Python code (0.45 and later), operation by operation. As subclasses of
bitsandbytes' layers, they are treated as such by peft. Introduced in notebook 05.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bitsandbytes as bnb
import torch
from torch import nn

if TYPE_CHECKING:
    from course_utils.memory._tracker import Tracker

THRESHOLD = 6.0  # transformers' llm_int8_threshold
BLOCK = 64  # values that share a scale in 4 bits
NESTED_BLOCK = 256  # scales that share a scale in double quantization


def quantized(layer: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
    """Return the quantized layer that replaces a linear layer on meta.

    Args:
        layer: `nn.Linear`, or GPT-2's `Conv1D`.
        name: the quantization, as in `Setup`.
        dtype: what 4-bit weights are dequantized to.
    """
    if name == "8bit":
        return Linear8bit(layer)
    kind, _, double = name.partition("-")
    return Linear4bit(layer, kind, bool(double), dtype)


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _quantize_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`int8_vectorwise_quant` if no value reaches the outlier threshold."""
    scales = empty(values.shape[0], dtype=torch.float32)
    codes = empty(*values.shape, dtype=torch.int8)
    outliers = values.abs() >= THRESHOLD
    outliers.any()
    return codes, scales


class _Int8Matmul(torch.autograd.Function):
    """`MatMul8bitLt`: the input is kept on the context, so a backward pass does not free it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Linear8bit) -> torch.Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        codes, scales = _quantize_rows(x.to(torch.float16))
        out = _scaled_product(codes, layer, x.dtype)
        del codes, scales
        ctx.layer, ctx.shape, ctx.dtype = layer, shape, x.dtype
        ctx.kept = x if ctx.needs_input_grad[0] else None
        return out.view(*shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        weight = ctx.layer.weight.data.to(ctx.dtype, copy=True)
        weight = weight.mul_(ctx.layer.scales.unsqueeze(1).mul(1 / 127))
        return torch.matmul(gradient.to(ctx.dtype), weight).view(ctx.shape), None


def _scaled_product(codes: torch.Tensor, layer: Linear8bit, dtype: torch.dtype) -> torch.Tensor:
    """`int8_scaled_mm`: an int32 product, scaled to float16, then cast to the required dtype."""
    sums = empty(codes.shape[0], layer.out_features, dtype=torch.int32)
    out = torch.empty_like(sums, dtype=torch.float16)
    if layer.bias is not None and layer.bias.dtype != torch.float16:
        out.add_(layer.bias)
    return out.to(dtype)


class Linear8bit(bnb.nn.Linear8bitLt):
    """LLM.int8() on meta: one byte per weight, a float32 scale per row."""

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
        codes = empty(rows, columns, dtype=torch.int8)
        self.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False)
        self.bias = layer.bias
        self.scales = empty(rows, dtype=torch.float32)

    expected_bytes = 1  # per weight, in transformers' `quantized_element_size`

    def extra_tensors(self) -> list[torch.Tensor]:
        """Return its tensors other than parameters."""
        return [self.scales]

    def book_quantized(self, tracker: Tracker) -> None:
        """Record the memory requests of quantizing on the GPU, with the weight already there.

        Sources: transformers' `Bnb8bitQuantize` takes the weight to the CPU and back, where the
        first copy still waits; bitsandbytes' `Int8Params._quantize`, `int8_vectorwise_quant`.
        """
        again = tracker.take(2 * self.weight.numel(), "Int8Params.to")
        tracker.hold(self.scales)
        tracker.hold(self.weight)
        again()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias.data = self.bias.data.to(x.dtype)
        return _Int8Matmul.apply(x, self)


class _Matmul4Bit(torch.autograd.Function):
    """`MatMul4Bit`: the weight is dequantized for each multiplication, and nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Linear4bit, bias: Any) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.expanded(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return torch.matmul(gradient, ctx.layer.expanded().to(gradient.dtype)), None, None


class Linear4bit(bnb.nn.Linear4bit):
    """QLoRA's 4-bit layer on meta: half a byte per weight, and a scale for each 64."""

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
        codes = empty(-(-values // 2), 1, dtype=torch.uint8)
        self.weight = bnb.nn.Params4bit(
            codes, requires_grad=False, quant_type=kind, compress_statistics=double
        )
        self.bias = layer.bias
        blocks = -(-values // BLOCK)
        self.scales = [empty(16, dtype=torch.float32)]  # the quantization levels
        if double:
            nested = -(-blocks // NESTED_BLOCK)
            self.scales += [
                empty(blocks, dtype=torch.uint8),
                empty(nested, dtype=torch.float32),
                empty(256, dtype=torch.float32),
                empty(1, dtype=torch.float32),
            ]
        else:
            self.scales.append(empty(blocks, dtype=torch.float32))
        self.double, self.blocks = double, blocks

    expected_bytes = 0.5  # per weight, in transformers' `quantized_element_size`

    def extra_tensors(self) -> list[torch.Tensor]:
        """Return its tensors other than parameters."""
        return self.scales

    def store_as(self, dtype: torch.dtype) -> None:
        """Keep the codes in numbers of another type, as `bnb_4bit_quant_storage` does."""
        numbers = -(-self.weight.numel() // dtype.itemsize)
        self.weight = bnb.nn.Params4bit(
            empty(numbers, 1, dtype=dtype),
            requires_grad=False,
            quant_type=self.weight.quant_type,
            compress_statistics=self.double,
        )

    def book_quantized(self, tracker: Tracker) -> None:
        """Record the memory requests of quantizing on the GPU, with the weight already there.

        Sources: bitsandbytes' `functional.py`, `quantize_4bit` and `get_4bit_type`, and its kernels
        in `backends/cuda/ops.py`.
        """
        levels, *scales = self.scales
        if self.double:
            absmax = tracker.take(4 * self.blocks, "quantize_4bit")
        else:
            tracker.hold(scales[0])
        tracker.hold(self.weight)
        tracker.hold(levels)
        small = [tracker.take(size, "get_4bit_type") for size in (levels.nbytes, 4)]
        for release in small:
            release()
        if self.double:
            codes, nested, table, offset = scales
            tracker.hold(offset)
            centred = tracker.take(4 * self.blocks, "quantize_4bit")
            for tensor in (table, nested, codes):
                tracker.hold(tensor)
            centred()
            absmax()

    def expanded(self) -> torch.Tensor:
        """`dequantize_4bit`."""
        if self.double:
            scales = empty(self.blocks, dtype=torch.float32)
            scales += self.scales[-1]
        return empty(self.out_features, self.in_features, dtype=self.compute_dtype)

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
    """Return the numbers of outputs and inputs; GPT-2's Conv1D stores them the other way round."""
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, nn.Linear) else (columns, rows)
