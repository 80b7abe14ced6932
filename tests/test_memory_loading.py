"""What loading a quantized model asks for, beside a real `from_pretrained` on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from course_utils.memory import Setup, predict
from course_utils.memory import _build as build
from course_utils.memory import _loading as loading
from course_utils.memory._allocator import Allocator, rounded
from course_utils.memory._gpus import GPUS
from course_utils.memory._tracker import Tracker

CONFIG = LlamaConfig(
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=11,  # two digits: layer 10 comes after layer 9
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1000,
)


def setup(**changes: object) -> Setup:
    """A small nf4 model in bfloat16."""
    given = {"quantization": "nf4", "lora": True, "trainer": "loop", "seq_len": 32} | changes
    return Setup(CONFIG.to_dict(), **given)


def booked(wanted: Setup) -> tuple[Tracker, torch.nn.Module]:
    """What the simulation books of a loading."""
    tracker = Tracker(Allocator())
    tracker.phase = "loading"
    made = build.prepared_by_hand(wanted, build.model(wanted, "meta"), "meta")
    assert loading.book(made, wanted, tracker, GPUS["t4"])
    return tracker, made


def large(tracker: Tracker) -> list[int]:
    """Requests (above) and releases (below 0) of more than the quantization's constants."""
    return [size for _, _, size in tracker.log if abs(size) > 2048]


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "nf4-double"])
def test_the_order_is_that_of_from_pretrained(tmp_path: Path, quantization: str) -> None:
    """Weights come one by one, and each is released before the next one comes."""
    wanted = setup(quantization=quantization, kbit_preparation=False)
    simulated, kept = booked(wanted)
    with torch.device("cpu"):
        AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16).save_pretrained(tmp_path)
    kind, _, double = quantization.partition("-")
    real = Tracker(Allocator(), device="cpu")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=bool(double),
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with real:
        made = AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.bfloat16, device_map={"": "cpu"}, quantization_config=config
        )
    assert made.is_loaded_in_4bit
    # The weights' own requests, by size: those of the CPU's kernels beside them are others.
    weights = {rounded(2 * size) for size in (128 * 128, 64 * 128, 128 * 352, 1000 * 128)}
    warm_up = 2  # its request and release
    of_simulated = [size for size in large(simulated)[warm_up:] if abs(size) in weights]
    of_real = [size for size in large(real) if abs(size) in weights]
    assert of_simulated == of_real
    assert len([size for size in of_real if size > 0]) == 2 + 7 * 11
    del kept, made  # their ends are no part of loading


def test_what_stays_is_what_the_model_has() -> None:
    """Casts of the preparation leave no 16-bit copies, and nothing is booked twice."""
    tracker, made = booked(setup())
    before = tracker.allocator.allocated
    for tensor in (*made.parameters(), *made.buffers()):
        if not tensor.requires_grad:
            tracker.hold(tensor)
    assert tracker.allocator.allocated == before
    kept = sum(
        rounded(tensor.nbytes)
        for tensor in (*made.parameters(), *made.buffers())
        if not tensor.requires_grad
    )
    scales = sum(
        rounded(tensor.nbytes)
        for module in made.modules()
        if hasattr(module, "extra_tensors")
        for tensor in module.extra_tensors()
    )
    assert before == kept + scales


def test_loading_has_a_phase_and_an_assumption() -> None:
    """Only where something is quantized: other weights come as they are."""
    found = predict(setup(), "t4")
    assert found.phases["loading"] >= found.phases["weights"] * 0.5
    assert any("from_pretrained" in said for said in found.assumptions)
    plain = predict(setup(quantization=None), "t4")
    assert "loading" not in plain.phases
    assert not any("from_pretrained" in said for said in plain.assumptions)


def test_eight_bits_are_on_the_gpu_twice_while_they_are_quantized() -> None:
    """The checkpoint's copy waits while the weight comes from the CPU again."""
    tracker, _ = booked(setup(quantization="8bit"))
    weight = rounded(2 * 128 * 352)
    sizes = large(tracker)
    start = sizes.index(weight)
    assert sizes[start : start + 2] == [weight, weight]


def test_the_warm_up_leaves_room() -> None:
    """On a GPU that the model nearly fills, less than the model is asked for at once."""
    wanted = setup()
    made = build.prepared_by_hand(wanted, build.model(wanted, "meta"), "meta")
    tracker = Tracker(Allocator())
    small = GPUS["t4"].__class__("small", 1229, (7, 5), 1229)
    assert loading.book(made, wanted, tracker, small)
    assert tracker.log[0][2] <= 2**20
