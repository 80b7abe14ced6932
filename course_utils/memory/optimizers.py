"""bitsandbytes' 8-bit AdamW on meta tensors: what it holds. Introduced in notebook 05."""

from __future__ import annotations

import torch
from torch import nn

SMALLEST_8BIT = 4096  # min_8bit_size: below, states are in float32
SMALLEST_PAGED = 100_000  # get_state_buffer: below, states are not paged
BLOCK = 256  # values that share a scale


class Adam8bit:
    """What `bitsandbytes.optim.AdamW(optim_bits=8)` holds; its kernels work in place.

    Source: `bitsandbytes/optim/optimizer.py`, `Optimizer2State.init_state` and
    `get_state_buffer`. Paged states lie in CUDA's managed memory, which PyTorch's allocator does
    not see.

    Args:
        parameters: on meta.
        paged: whether large states are paged.
    """

    def __init__(self, parameters: list[nn.Parameter], paged: bool):
        self.parameters, self.paged = parameters, paged
        self.state: dict[int, list[torch.Tensor]] = {}
        self.levels: list[torch.Tensor] = []

    def step(self) -> None:
        """The first one makes the states."""
        if not self.levels:
            self.levels = [torch.empty(256, dtype=torch.float32, device="meta") for _ in range(2)]
        for parameter in self.parameters:
            if parameter.grad is not None and id(parameter) not in self.state:
                self.state[id(parameter)] = self._states(parameter)

    def _states(self, parameter: nn.Parameter) -> list[torch.Tensor]:
        small = parameter.numel() < SMALLEST_8BIT
        dtype = torch.float32 if small else torch.uint8
        made = []
        if not (self.paged and parameter.numel() >= SMALLEST_PAGED):
            made += [torch.zeros_like(parameter, dtype=dtype) for _ in range(2)]
        if not small:
            blocks = -(-parameter.numel() // BLOCK)
            made += [torch.zeros(blocks, dtype=torch.float32, device="meta") for _ in range(2)]
        return made

    def zero_grad(self) -> None:
        """Gradients are dropped, not filled with zeros."""
        for parameter in self.parameters:
            parameter.grad = None

    def states(self) -> list[torch.Tensor]:
        """All tensors that it holds."""
        return [*self.levels, *(tensor for made in self.state.values() for tensor in made)]
