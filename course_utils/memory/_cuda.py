"""What PyTorch does on a GPU but not on meta tensors: kernels, their workspaces, and autocast.

The kernel that runs determines what is kept for the backward pass. The rules are taken from the
source of PyTorch 2.13; each function names the file. Introduced in notebook 05.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from packaging.version import Version
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from course_utils.memory._gpus import Gpu

_aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
TORCH = Version(torch.__version__)


def round_up(number: int, to: int) -> int:
    """Round up to a multiple of `to`."""
    return -(-number // to) * to


def attention_kernel(
    gpu: Gpu,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    grouped: bool,
) -> str:
    """Return the kernel that `scaled_dot_product_attention` uses in training.

    Source: `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`: the order of priority, and the
    conditions that can fail when training a decoder.

    Args:
        gpu: the GPU it runs on.
        query, key, value: (batch, heads, tokens, head size).
        mask: an attention mask, if any.
        grouped: whether there may be fewer key-value heads than query heads (`enable_gqa`).

    Returns:
        "cudnn", "flash", "efficient" or "math".
    """
    same_heads = query.shape[1] == key.shape[1] == value.shape[1]
    if not same_heads and not grouped:
        return "math"
    width = query.shape[-1]
    same_width = width == key.shape[-1] == value.shape[-1]
    half = query.dtype in HALF
    if half and gpu.capability >= (8, 0):
        cudnn_first = gpu.capability[0] in (9, 10) and Version("2.10") <= TORCH
        if cudnn_first and width <= 128 and width % 8 == 0:
            return "cudnn"
        # GPUs from 8.6 to 8.9 have too little shared memory for a wide head's backward pass.
        narrow = width <= (192 if (8, 6) <= gpu.capability <= (8, 9) else 256)
        if mask is None and same_width and narrow and query.shape[-2] == key.shape[-2]:
            return "flash"
    alignment = 8 if half and gpu.capability >= (7, 0) else 4 if gpu.capability >= (8, 0) else 1
    known = half or query.dtype == torch.float32
    if query.dtype == torch.bfloat16 and gpu.capability < (8, 0):
        known = False
    aligned = width % alignment == 0 and value.shape[-1] % alignment == 0
    # The efficient kernel does not support grouped heads before PyTorch 2.14.
    if known and aligned and (same_heads or Version("2.14") <= TORCH):
        return "efficient"
    return "math"


def scaled_dot_product_attention(
    gpu: Gpu,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    seen: dict[str, bool] | None = None,
) -> torch.Tensor:
    """Run torch's function of this name with the kernel that a GPU would use.

    Source: `aten/src/ATen/native/transformers/attention.cpp`.
    """
    kernel = attention_kernel(gpu, query, key, value, attn_mask, enable_gqa)
    if seen is not None:
        seen[kernel] = seen.get(kernel, False) or query.shape[1] != key.shape[1]
    if kernel == "math":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if kernel == "flash":
        width = query.shape[-1]
        if width % 8:  # padded to a multiple of 8; the scale remains that of the real width
            scale = scale or 1 / math.sqrt(width)
            query, key, value = (F.pad(x, (0, 8 - width % 8)) for x in (query, key, value))
        out = _aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
        return out[..., :width]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            # Not masked_fill: the condition is inverted and the mask written in one pass.
            attn_mask = torch.where(attn_mask, 0.0, -math.inf).to(query.dtype)
        if kernel == "efficient" and attn_mask.shape[-1] % 16:
            tokens = attn_mask.shape[-1]
            attn_mask = F.pad(attn_mask, (0, 16 - tokens % 16))[..., :tokens]
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        attn_mask = attn_mask.expand(shape)
    tracked = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if kernel == "cudnn":
        return _aten._scaled_dot_product_cudnn_attention(
            query, key, value, attn_mask, tracked, dropout_p, is_causal, False, scale=scale
        )[0]
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, tracked, dropout_p, is_causal, scale=scale
    )[0]


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    **_: Any,
) -> torch.Tensor:
    """flash_attn's function for meta tensors of shape (batch, tokens, heads, head size)."""
    return _aten._flash_attention_forward(
        q, k, v, None, None, q.shape[1], k.shape[1], dropout_p, causal, False, scale=softmax_scale
    )[0]


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    **_: Any,
) -> torch.Tensor:
    """The same for examples of different lengths in one row: (tokens, heads, head size)."""
    return _aten._flash_attention_forward(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        int(max_seqlen_q),
        int(max_seqlen_k),
        dropout_p,
        causal,
        False,
        scale=softmax_scale,
    )[0]


def scratch(func: Any, args: tuple, kwargs: dict, out: Any) -> Iterator[int]:
    """Yield the sizes, in bytes, of what a CUDA kernel allocates for itself while it runs.

    Sources: `Softmax.cu` (the product of gradient and output), `Embedding.cu` and
    `EmbeddingBackwardKernel.cu` (sorted indices and partial sums), `flash_api.cpp` (the sum for
    each row, the query's gradient in float32, and a gradient for each head where heads share
    keys), `attention_backward.cu` (the same for the efficient kernel).
    """
    if func is _aten._softmax_backward_data.default:
        yield args[1].numel() * args[1].element_size()
    elif func is _aten.embedding_dense_backward.default:
        gradient, indices, rows = args[:3]
        tokens, width = indices.numel(), gradient.shape[-1]
        if tokens > 3072:  # fewer are added without sorting
            partial = tokens // 10 + min(tokens, rows)
            yield from (8 * tokens,) * 6
            yield 4 * partial * width
    elif func in _FLASH_BACKWARD:
        query, key = args[1], args[2]
        if query.dim() == 4:
            over_tokens = _FLASH_BACKWARD[func]
            batch, width = query.shape[0], query.shape[-1]
            heads, tokens = (
                (query.shape[1], query.shape[2])
                if over_tokens
                else (query.shape[2], query.shape[1])
            )
            rows, shared = round_up(tokens, 128), key.shape[1 if over_tokens else 2] != heads
            key_rows = key.shape[2 if over_tokens else 1]
        else:  # examples of different lengths in one row
            sequences = args[6].numel() - 1
            batch, heads, width = 1, query.shape[1], query.shape[2]
            rows, shared = query.shape[0] + 128 * sequences, key.shape[1] != heads
            key_rows = key.shape[0]
        yield 4 * batch * heads * rows
        yield 4 * batch * rows * heads * round_up(width, 32)
        if shared:
            yield from (batch * key_rows * heads * width * key.element_size(),) * 2
    elif func is _aten._scaled_dot_product_efficient_attention_backward.default:
        query = args[1]
        batch, heads, tokens, width = query.shape
        yield 4 * batch * heads * tokens
        if query.dtype in HALF:
            yield 4 * batch * heads * round_up(tokens, 128) * round_up(width, 64)
        else:  # the kernel leaves the product of gradient and output to PyTorch
            yield 4 * query.numel()


# Whether heads come before tokens in the operation's arguments.
_FLASH_BACKWARD = {
    _aten._scaled_dot_product_flash_attention_backward.default: True,
    _aten._flash_attention_backward.default: False,
}

# Autocast's lists, as far as they matter for decoders: torch/docs/source/amp.md.
_IN_HALF = {
    F.linear,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
    torch.mm,
    torch.Tensor.mm,
    torch.bmm,
    torch.Tensor.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.Tensor.baddbmm,
    torch.einsum,
    torch.conv1d,
    F.conv1d,
    F.scaled_dot_product_attention,
}
_IN_FLOAT32 = {
    F.softmax,
    torch.softmax,
    torch.Tensor.softmax,
    F.log_softmax,
    torch.log_softmax,
    F.layer_norm,
    F.group_norm,
    F.rms_norm,
    F.cross_entropy,
    F.nll_loss,
    F.softplus,
    torch.pow,
    torch.Tensor.pow,
    torch.Tensor.__pow__,
    torch.rsqrt,
    torch.Tensor.rsqrt,
    torch.exp,
    torch.Tensor.exp,
    torch.log,
    torch.Tensor.log,
    torch.reciprocal,
    torch.Tensor.reciprocal,
    torch.sum,
    torch.Tensor.sum,
    torch.cumsum,
    torch.Tensor.cumsum,
    torch.prod,
    torch.Tensor.prod,
    torch.norm,
    torch.Tensor.norm,
    torch.cosh,
    torch.sinh,
    torch.tan,
    torch.acos,
    torch.asin,
}


class OnGpu(TorchFunctionMode):
    """Context in which functions on meta tensors behave as on a GPU.

    Args:
        gpu: the GPU to imitate.
        autocast: the dtype of mixed precision; None without it.
    """

    def __init__(self, gpu: Gpu, autocast: torch.dtype | None = None):
        super().__init__()
        self.gpu = gpu
        self.autocast = autocast
        self._casting = 0  # how many times autocast was entered
        self._casts: dict[int, torch.Tensor] = {}
        self._inside = 0
        # The attention kernels used, and whether any had grouped heads in its inputs.
        self.kernels: dict[str, bool] = {}

    @contextlib.contextmanager
    def casting(self) -> Iterator[None]:
        """Enter autocast, if there is any; casts of trained weights are cached until it ends."""
        if self.autocast is None:
            yield
            return
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", self.autocast)
        self._casting += 1
        try:
            yield
        finally:
            self._casting -= 1
            torch.set_autocast_enabled("cuda", enabled)
            torch.set_autocast_dtype("cuda", dtype)
            if not self._casting:
                self._casts.clear()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Disable autocast, for code that must stay in its own dtype."""
        casting, self._casting = self._casting, 0
        try:
            yield
        finally:
            self._casting = casting

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Enter this mode unless it is active already."""
        if self._inside:
            yield
            return
        self._inside += 1
        try:
            with self:
                yield
        finally:
            self._inside -= 1

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._cast(entry, dtype) for entry in value)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if value.dtype == dtype or value.device.type != "meta":
            return value
        if value.is_leaf and value.requires_grad and dtype == self.autocast:
            if id(value) not in self._casts:
                self._casts[id(value)] = value.to(dtype)
            return self._casts[id(value)]
        return value.to(dtype)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._casting:
            dtype = None
            if func in _IN_HALF:
                dtype = self.autocast
            elif func in _IN_FLOAT32 and not kwargs.get("dtype"):
                dtype = torch.float32
            if dtype is not None:
                args = tuple(self._cast(value, dtype) for value in args)
                kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if tensor is None or tensor.device.type != "meta":
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            kwargs = {**kwargs, "seen": self.kernels}
            return scaled_dot_product_attention(self.gpu, *args, **kwargs)
        if func in (F.dropout, torch.dropout):
            return self._dropout(*args, **kwargs)
        if func in (F.softmax, torch.softmax, torch.Tensor.softmax):
            return self._softmax(func, *args, **kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _dropout(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        """Source: `aten/src/ATen/native/Dropout.cpp`; the fused kernel keeps a byte mask."""
        if inplace or not training or not 0 < p < 1:
            return F.dropout(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0]

    @staticmethod
    def _softmax(func: Callable, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Source: `aten/src/ATen/native/SoftMax.cpp`; from float16 to float32 in one kernel."""
        dim = args[0] if args else kwargs.get("dim")
        if (
            kwargs.get("dtype") == torch.float32
            and input.dtype == torch.float16
            and dim is not None
        ):
            return torch._softmax(input, dim, True)
        return func(input, *args, **kwargs)
