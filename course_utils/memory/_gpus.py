"""The GPUs that the course knows by name: memory and capability. Introduced in notebook 05."""

from __future__ import annotations

from dataclasses import dataclass

from course_utils._core import checks
from course_utils.errors import unknown

MIB = 2**20
# Conservative estimates if nothing was measured: the driver's share of a GPU's memory (2.9% on a
# T4), and the CUDA context with its kernels, which is outside PyTorch's allocator.
KEPT_SHARE = 0.03
CONTEXT_MIB = 600


@dataclass(frozen=True)
class Gpu:
    """A GPU, described as far as memory depends on it.

    Attributes:
        name: its usual name.
        memory_mib: the total that `nvidia-smi` shows, in MiB = 2^20 bytes.
        capability: the CUDA compute capability, which determines the kernels.
        total_mib: the total that CUDA reports in `torch.cuda.mem_get_info`, which is less; None if
            not measured.
        measured_context_mib: the CUDA context, if measured.

    Raises:
        ValueError: a value that no GPU has.
    """

    name: str
    memory_mib: int
    capability: tuple[int, int]
    total_mib: int | None = None
    measured_context_mib: int | None = None

    def __post_init__(self) -> None:
        checks.text("name", self.name, empty=False)
        checks.whole("memory_mib", self.memory_mib, 1, 10**9)
        for name in ("total_mib", "measured_context_mib"):
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name), 1, self.memory_mib)
        numbers = self.capability if isinstance(self.capability, tuple) else ()
        if len(numbers) != 2 or not all(type(part) is int and 0 <= part < 100 for part in numbers):
            raise checks.refuse(
                "capability", self.capability, "a pair of whole numbers, such as (8, 6)"
            )

    @property
    def workspace(self) -> int:
        """Bytes that cuBLAS takes from the allocator for each thread that multiplies matrices.

        8,320 KiB, or 32 MiB on Hopper: the defaults that PyTorch adopts from CUDA
        (`aten/src/ATen/cuda/CublasHandlePool.cpp`, `CUBLAS_WORKSPACE_CONFIG`).
        """
        return 32 * MIB if self.capability[0] == 9 else 8320 * 1024

    @property
    def context_mib(self) -> int:
        """The size of the CUDA context in MiB: measured, or a conservative estimate."""
        return self.measured_context_mib or CONTEXT_MIB

    @property
    def process_mib(self) -> int:
        """The memory available to a process in MiB: measured, or a conservative estimate."""
        return self.total_mib or int(self.memory_mib * (1 - KEPT_SHARE))

    @property
    def computes_bfloat16(self) -> bool:
        """Whether bfloat16 is supported natively, not emulated."""
        return self.capability >= (8, 0)


# Sizes as shown by nvidia-smi; capabilities from developer.nvidia.com/cuda-gpus.
GPUS = {
    # The T4's total and context were measured by fitcheck-llm, see benchmarks/measured.
    "t4": Gpu("T4", 15360, (7, 5), 14912, 141),
    "p100": Gpu("P100", 16384, (6, 0)),
    "v100": Gpu("V100 16 GB", 16384, (7, 0)),
    "rtx3060": Gpu("RTX 3060", 12288, (8, 6)),
    "rtx3090": Gpu("RTX 3090", 24576, (8, 6)),
    "rtx4090": Gpu("RTX 4090", 24564, (8, 9)),
    "rtx5090": Gpu("RTX 5090", 32607, (12, 0)),
    "l4": Gpu("L4", 23034, (8, 9)),
    "a10g": Gpu("A10G", 23028, (8, 6)),
    "l40s": Gpu("L40S", 46068, (8, 9)),
    "a100-40gb": Gpu("A100 40 GB", 40960, (8, 0)),
    "a100-80gb": Gpu("A100 80 GB", 81920, (8, 0)),
    "h100": Gpu("H100 80 GB", 81559, (9, 0)),
    "h200": Gpu("H200", 143771, (9, 0)),
}
DEFAULT = GPUS["rtx4090"]


def gpu(name: Gpu | str) -> Gpu:
    """Return a GPU by its key in `GPUS`, ignoring case and blanks; a `Gpu` is returned as it is.

    Raises:
        UnknownName: there is no such GPU; the message lists those that are known.
    """
    if isinstance(name, Gpu):
        return name
    key = name.lower().replace(" ", "").replace("_", "-") if isinstance(name, str) else None
    if key not in GPUS:
        raise unknown("GPU", name, GPUS)
    return GPUS[key]


def this_gpu() -> Gpu | None:
    """Return this machine's first CUDA device, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    total = properties.total_memory // MIB
    return Gpu(properties.name, total, (properties.major, properties.minor), total)
