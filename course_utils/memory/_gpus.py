"""The GPUs that the course knows by name: memory and capability. Introduced in notebook 05."""

from __future__ import annotations

from dataclasses import dataclass

from course_utils._core import checks
from course_utils.errors import unknown

MIB = 2**20
# Cautious guesses where nothing is measured: what the driver keeps of a GPU's memory (on a T4 it is
# 2.9%), and the CUDA context with its kernels, which belongs to no allocator.
KEPT_SHARE = 0.03
CONTEXT_MIB = 600


@dataclass(frozen=True)
class Gpu:
    """A GPU as far as memory depends on it.

    Attributes:
        name: as people call it.
        memory_mib: what `nvidia-smi` shows in all, in MiB = 2^20 bytes.
        capability: the CUDA compute capability, which decides what kernels run.
        total_mib: what CUDA shows in all, as `torch.cuda.mem_get_info` gives it, which is less;
            None where it was not measured.
        measured_context_mib: the CUDA context, if it was measured.

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

        8,320 KiB, on Hopper 32 MiB: the defaults that PyTorch takes over from CUDA
        (`aten/src/ATen/cuda/CublasHandlePool.cpp`, `CUBLAS_WORKSPACE_CONFIG`).
        """
        return 32 * MIB if self.capability[0] == 9 else 8320 * 1024

    @property
    def context_mib(self) -> int:
        """What the CUDA context takes, in MiB: measured, or a cautious guess."""
        return self.measured_context_mib or CONTEXT_MIB

    @property
    def process_mib(self) -> int:
        """What a process can have of it, in MiB: measured, or a cautious guess."""
        return self.total_mib or int(self.memory_mib * (1 - KEPT_SHARE))

    @property
    def computes_bfloat16(self) -> bool:
        """Whether bfloat16 is computed in, not emulated."""
        return self.capability >= (8, 0)


# Sizes as nvidia-smi shows them; capabilities as on developer.nvidia.com/cuda-gpus.
GPUS = {
    # Total and context of the T4: fitcheck-llm's measurements, see benchmarks/measured.
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
    """A GPU by its key in `GPUS`, in any case and with or without blanks; or one as it is.

    Raises:
        UnknownName: another one, with those that are known.
    """
    if isinstance(name, Gpu):
        return name
    key = name.lower().replace(" ", "").replace("_", "-") if isinstance(name, str) else None
    if key not in GPUS:
        raise unknown("GPU", name, GPUS)
    return GPUS[key]


def this_gpu() -> Gpu | None:
    """The first CUDA device of this machine, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    total = properties.total_memory // MIB
    return Gpu(properties.name, total, (properties.major, properties.minor), total)
