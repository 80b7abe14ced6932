"""Hardware: tier, dtype and attention with their reasons, for machines that are not here too."""

from __future__ import annotations

import psutil
import pytest
import torch

from course_utils.hardware import (
    TIERS,
    Hardware,
    describe,
    detect,
    pick_attention,
    pick_dtype,
    shown_features,
    tier,
)


def gpu(name: str, memory_gb: float, capability: tuple[int, int], **more: object) -> Hardware:
    """A machine with a GPU."""
    return Hardware(gpu_name=name, gpu_memory_gb=memory_gb, gpu_capability=capability, **more)


# What torch reports as total memory, in GB = 10^9 bytes.
T4 = gpu("Tesla T4", 15.8, (7, 5))
L4 = gpu("NVIDIA L4", 23.7, (8, 9))
A100 = gpu("NVIDIA A100-SXM4-40GB", 42.4, (8, 0))
V100 = gpu("Tesla V100", 16.9, (7, 0))
RTX_3060_LAPTOP = gpu("RTX 3060 Laptop", 6.2, (8, 6))
RTX_4090 = gpu("RTX 4090", 25.3, (8, 9))


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        (Hardware(), "cpu"),
        (RTX_3060_LAPTOP, "cpu"),
        (T4, "16gb"),
        (V100, "16gb"),
        (L4, "24gb"),
        (RTX_4090, "24gb"),
        (A100, "40gb"),
        (gpu("H200", 150.0, (9, 0)), "40gb"),
    ],
)
def test_tier(hardware: Hardware, expected: str) -> None:
    """Each card lands in its tier, with its memory as the reason."""
    choice = tier(hardware)
    assert choice.value == expected
    assert expected in TIERS
    if hardware.gpu_name:
        assert hardware.gpu_name in choice.reason


@pytest.mark.parametrize(
    ("hardware", "expected", "because"),
    [
        (T4, torch.float16, "7.5"),
        (V100, torch.float16, "7.0"),
        (A100, torch.bfloat16, "8.0"),
        (RTX_3060_LAPTOP, torch.bfloat16, "8.6"),
        (Hardware(cpu_features=frozenset({"avx2", "avx512f"})), torch.float32, "neither"),
        (Hardware(cpu_features=frozenset({"avx512_bf16"})), torch.bfloat16, "avx512_bf16"),
        (Hardware(cpu_features=frozenset({"amx_bf16"})), torch.bfloat16, "amx_bf16"),
        (Hardware(), torch.float32, "neither"),
    ],
)
def test_dtype(hardware: Hardware, expected: torch.dtype, because: str) -> None:
    """16 bits only where they are native, and never bfloat16 on a T4."""
    choice = pick_dtype(hardware)
    assert choice.value is expected
    assert because in choice.reason


def test_attention() -> None:
    """FlashAttention 2 only where the GPU supports it and the package is there."""
    assert pick_attention(Hardware()).value == "sdpa"
    assert pick_attention(T4).value == "sdpa"
    assert "8.0" in pick_attention(T4).reason
    assert pick_attention(A100).value == "sdpa"
    with_package = gpu("A100", 42.4, (8, 0), flash_attn=True)
    assert pick_attention(with_package).value == "flash_attention_2"
    assert pick_attention(gpu("T4", 15.8, (7, 5), flash_attn=True)).value == "sdpa"


def test_this_machine() -> None:
    """What is detected agrees with what torch and the system say by other ways."""
    hw = detect()
    assert hw.cpu_cores >= 1
    assert hw.ram_gb * 1e9 == pytest.approx(psutil.virtual_memory().total)
    assert 0 < hw.ram_free_gb <= hw.ram_gb
    assert hw.disk_free_gb > 0
    assert (hw.gpu_name is not None) == torch.cuda.is_available() or hw.gpu_note
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert "avx512f" in hw.cpu_features


def test_chosen_dtype_computes_here() -> None:
    """A matrix product in the chosen dtype runs on the chosen device."""
    hw = detect()
    dtype = pick_dtype(hw).value
    eye = torch.eye(8, dtype=dtype, device=hw.device)
    assert (eye @ eye).dtype is dtype


def test_describe_gives_reasons() -> None:
    """The lines at the top of a notebook hold the choices and why."""
    text = describe(T4)
    assert "Tesla T4" in text
    assert "16gb" in text
    assert "float16" in text
    assert "no bfloat16" in text
    assert "1 CPU core, 8 GB" in describe(Hardware(cpu_cores=1, ram_gb=8.0))
    assert "2 CPU cores, 8 GB" in describe(Hardware(cpu_cores=2, ram_gb=8.0))


def test_features_have_one_name_on_all_systems() -> None:
    """ARM Linux calls NEON asimd."""
    assert shown_features(Hardware(cpu_features=frozenset({"asimd", "sse"}))) == ["neon"]
