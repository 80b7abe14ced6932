"""This machine's hardware, and the choices that follow: tier, dtype, attention, with reasons.

Introduced in notebook 01. Sizes are in GB = 10^9 bytes unless a name says otherwise.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from course_utils._core import checks
from course_utils.errors import CourseError

TIERS = ("cpu", "16gb", "24gb", "40gb")

# A "16 GB" card reports a little less than its nominal size, hence bounds between the sizes.
_TIER_FROM_GB = {"16gb": 14.0, "24gb": 21.0, "40gb": 38.0}

_BF16_FEATURES = ("avx512_bf16", "amx_bf16")
_SHOWN_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon")


class Choice(NamedTuple):
    """A setting and the reason for it, to be printed together."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Hardware:
    """A machine's hardware, as far as the course needs it. Create one by hand to ask "what if"."""

    cpu_name: str = "unknown CPU"
    cpu_cores: int = 1
    cpu_features: frozenset[str] = field(default_factory=frozenset)
    ram_gb: float = 0.0
    ram_free_gb: float = 0.0
    disk_free_gb: float = 0.0
    gpu_name: str | None = None
    gpu_memory_gb: float = 0.0
    gpu_capability: tuple[int, int] | None = None
    gpu_note: str = ""
    flash_attn: bool = False

    @property
    def device(self) -> str:
        """The device for models: `"cuda"` or `"cpu"`."""
        return "cuda" if self.gpu_name else "cpu"


def _cpu_info() -> tuple[str, frozenset[str]]:
    """The CPU's name and feature flags."""
    name, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags.update(value.split())
    else:
        # On other systems than Linux, torch tells only the widest vector unit that it uses.
        capability = torch.backends.cpu.get_cpu_capability()
        flags.update({"AVX512": {"avx2", "avx512f"}, "AVX2": {"avx2"}}.get(capability, set()))
        if platform.system() == "Darwin":
            brand = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
            )
            name = brand.stdout.strip() or name
    return name, frozenset(flags)


def _usable_cores() -> int:
    """The number of cores that this process may use (fewer in a container or with `taskset`)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_info() -> dict[str, Any]:
    """Describe the first CUDA device, or note why there is no usable one."""
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and torch.version.cuda is None:
            return {
                "gpu_note": "there is an NVIDIA driver, but this torch is a CPU build: "
                f"delete {Path(sys.prefix).name} and run the set-up again"
            }
        if torch.backends.mps.is_available():
            return {"gpu_note": "an Apple GPU is there; the course runs on the CPU beside it"}
        return {"gpu_note": "no CUDA device"}
    capability = torch.cuda.get_device_capability(0)
    built_for = [int(arch.split("_")[1]) for arch in torch.cuda.get_arch_list() if "sm_" in arch]
    if built_for and capability[0] * 10 + capability[1] < min(built_for):
        return {
            "gpu_note": f"{torch.cuda.get_device_name(0)} (capability {capability[0]}."
            f"{capability[1]}) is older than this torch build supports; the CPU is used"
        }
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu_name": properties.name,
        "gpu_memory_gb": properties.total_memory / 1e9,
        "gpu_capability": capability,
        "flash_attn": importlib.util.find_spec("flash_attn") is not None,
    }


@functools.cache
def _fixed_facts() -> dict[str, Any]:
    name, flags = _cpu_info()
    return {
        "cpu_name": name,
        "cpu_features": flags,
        "cpu_cores": _usable_cores(),
        **_gpu_info(),
    }


def written_places() -> list[Path]:
    """List the folders that models are written to: the course's cache and the hub's.

    A folder that cannot be determined, because there is no home folder, is left out.
    """
    from huggingface_hub import constants

    from course_utils.models import _packaged as embedded

    places = [Path(constants.HF_HUB_CACHE)]
    try:
        places.append(embedded.cache_dir())
    except (CourseError, RuntimeError, OSError):  # no home folder
        return []
    return [place for place in places if place.is_absolute()]


def existing_part(place: Path) -> Path:
    """Return a folder or its nearest existing parent, by which its disk can be found."""
    for folder in (place, *place.parents):
        try:
            if folder.is_dir():
                return folder
        except OSError:  # no permission to look into it
            continue
    return Path(place.anchor or ".")


def _disk_free_gb() -> float:
    """The free disk space where models are written; the least, if there are several disks."""
    places = written_places() or [Path.cwd()]
    return min(shutil.disk_usage(existing_part(place)).free for place in places) / 1e9


def detect() -> Hardware:
    """Detect this machine's hardware. Constant facts are looked up once, free space each time."""
    memory = psutil.virtual_memory()
    return Hardware(
        ram_gb=memory.total / 1e9,
        ram_free_gb=memory.available / 1e9,
        disk_free_gb=_disk_free_gb(),
        **_fixed_facts(),
    )


def _given(hardware: Hardware | None) -> Hardware:
    """Return the machine to decide for: this one for None.

    Raises:
        BadValue: not a `Hardware`.
    """
    if hardware is None:
        return detect()
    return checks.a("hardware", hardware, Hardware, "a Hardware, or None for this machine")


def tier(hardware: Hardware | None = None) -> Choice:
    """Return the machine's tier, one of `TIERS`, which determines the models and sizes used."""
    hw = _given(hardware)
    if not hw.gpu_name:
        return Choice("cpu", hw.gpu_note or "no CUDA device")
    fitting = [name for name, least in _TIER_FROM_GB.items() if hw.gpu_memory_gb >= least]
    size = f"{hw.gpu_name} has {hw.gpu_memory_gb:.0f} GB"
    if not fitting:
        return Choice("cpu", f"{size}, less than a 16 GB card: the small models run on it")
    return Choice(fitting[-1], size)


def pick_dtype(hardware: Hardware | None = None) -> Choice:
    """Choose the dtype for weights and computation: 16 bits only if the hardware supports it.

    bfloat16 has the range of float32, so training needs no loss scaling. NVIDIA GPUs support it
    from compute capability 8.0 on (older ones, such as a T4, emulate it slowly), CPUs with
    AVX512_BF16 or AMX_BF16.
    """
    hw = _given(hardware)
    if hw.gpu_capability:
        version = ".".join(map(str, hw.gpu_capability))
        if hw.gpu_capability >= (8, 0):
            return Choice(torch.bfloat16, f"capability {version} computes in bfloat16")
        return Choice(torch.float16, f"capability {version} has no bfloat16 (that starts at 8.0)")
    native = [name for name in _BF16_FEATURES if name in hw.cpu_features]
    if native:
        return Choice(torch.bfloat16, f"this CPU has {native[0]}")
    return Choice(torch.float32, "this CPU has neither avx512_bf16 nor amx_bf16")


def pick_attention(hardware: Hardware | None = None) -> Choice:
    """Choose the attention implementation, a value for transformers' `attn_implementation`."""
    hw = _given(hardware)
    if not hw.gpu_capability:
        return Choice("sdpa", "PyTorch's fused attention is the fastest on a CPU")
    if hw.gpu_capability < (8, 0):
        return Choice("sdpa", "FlashAttention 2 needs capability 8.0 or later")
    if not hw.flash_attn:
        return Choice("sdpa", "the flash_attn package is not installed; sdpa is near it")
    return Choice("flash_attention_2", "flash_attn is installed and this GPU supports it")


def shown_features(hardware: Hardware) -> list[str]:
    """List the CPU features that matter to the course, in a fixed order."""
    aliases = {"asimd": "neon"}  # what Linux calls NEON on 64-bit ARM
    have = {aliases.get(flag, flag) for flag in hardware.cpu_features}
    return [name for name in _SHOWN_FEATURES if name in have]


def describe(hardware: Hardware | None = None) -> str:
    """Describe the machine in three lines: hardware, tier, dtype and attention, with reasons."""
    hw = _given(hardware)
    if hw.gpu_name:
        machine = f"{hw.gpu_name}, {hw.gpu_memory_gb:.0f} GB"
    else:
        cores = "1 CPU core" if hw.cpu_cores == 1 else f"{hw.cpu_cores} CPU cores"
        machine = f"{cores}, {hw.ram_gb:.0f} GB RAM"
    level, dtype, attention = tier(hw), pick_dtype(hw), pick_attention(hw)
    return "\n".join(
        (
            f"Machine:   {machine}",
            f"Tier:      {level.value} ({level.reason})",
            f"Dtype:     {str(dtype.value).removeprefix('torch.')} ({dtype.reason})",
            f"Attention: {attention.value} ({attention.reason})",
        )
    )
