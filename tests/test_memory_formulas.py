"""The textbook estimates: worked by hand, against true models, and on bad input."""

from __future__ import annotations

import dataclasses

import pytest

from course_utils.errors import UnknownName
from course_utils.memory.formulas import (
    SEVEN,
    Shape,
    activation_bytes,
    activations_to_weights,
    block_parameters,
    block_weights,
    key_value_cache_bytes,
    seven_models,
    states_bytes,
)
from course_utils.models import _catalog as catalog

OPT = Shape(layers=24, hidden=1024, heads=16, key_value_heads=16, head_width=64)


def shape(name: str) -> Shape:
    """The shape of a model of the catalogue."""
    return Shape.of(catalog.known_model(name).config())


def test_shapes() -> None:
    """Grouped queries, one key-value head, and heads wider than the hidden size divides into."""
    assert shape("facebook/opt-350m") == dataclasses.replace(OPT, mlp_width=4096)
    llama = shape("meta-llama/Llama-3.2-3B")
    assert (llama.heads, llama.key_value_heads, llama.head_width) == (24, 8, 128)
    assert shape("tiiuae/falcon-7b").key_value_heads == 1
    assert shape("EleutherAI/pythia-1b").key_value_heads == 8


def test_by_hand() -> None:
    """OPT-350M, one example of 2,000 tokens."""
    assert block_parameters(OPT) == 12 * 24 * 1024 * 1024
    flash = 24 * 34 * 1024 * 2000
    assert activation_bytes(OPT, 1, 2000, "flash_attention_2") == flash
    assert activation_bytes(OPT, 1, 2000) == flash + 24 * 5 * 16 * 2000 * 2000
    assert activation_bytes(OPT, 1, 2000, item_bytes=4) == 2 * activation_bytes(OPT, 1, 2000)
    assert block_weights(OPT) == block_parameters(OPT)
    for exact in (True, False):
        ratio = activations_to_weights(OPT, 1, 2000, "flash_attention_2", exact=exact)
        assert ratio == pytest.approx(34 * 2000 / (12 * 1024) / 2)
    # p_comp/p_model: computing in 32 bits on weights in 16 doubles the ratio.
    assert activations_to_weights(OPT, 1, 2000, compute_bytes=4) == pytest.approx(
        2 * activations_to_weights(OPT, 1, 2000)
    )
    assert key_value_cache_bytes(OPT, 2, 100) == 2 * 24 * 1024 * 2 * 2 * 100


def test_blocks_are_most_of_a_classic_model() -> None:
    """12·L·h² is near the true count where the blocks are the classic ones."""
    for name in ("EleutherAI/pythia-6.9b", "meta-llama/Llama-2-7b-hf"):
        assert block_parameters(shape(name)) == pytest.approx(
            catalog.known_model(name).parameters, rel=0.07
        )


@pytest.mark.parametrize("name", [*SEVEN, "tiiuae/falcon-7b", "EleutherAI/pythia-1b"])
def test_block_weights_are_those_of_the_model(name: str) -> None:
    """Against the matrices of a decoder layer that transformers builds."""
    import torch
    from transformers import AutoModelForCausalLM

    config = catalog.known_model(name).config()
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    matrices = sum(p.numel() for p in layers[0].parameters() if p.dim() == 2)
    assert block_weights(Shape.of(config)) == matrices


def test_todays_models_are_not_gpt_2() -> None:
    """Qwen2.5-7B's blocks are half as large again as 12·L·h² says."""
    qwen = seven_models().loc["Qwen/Qwen2.5-7B"]
    assert qwen["blocks (GB)"] == pytest.approx(13.05, abs=0.005)
    assert qwen["12·L·h² (GB)"] == pytest.approx(8.63, abs=0.005)


def test_ten_times_longer() -> None:
    """Flash grows with the length; eager nearly with its square."""
    assert activation_bytes(OPT, 1, 20_000, "flash_attention_2") == pytest.approx(
        10 * activation_bytes(OPT, 1, 2000, "flash_attention_2")
    )
    assert 80 < activation_bytes(OPT, 1, 20_000) / activation_bytes(OPT, 1, 2000) < 100
    assert activation_bytes(OPT, 10, 2000) == 10 * activation_bytes(OPT, 1, 2000)


def test_states() -> None:
    """Four times the weights for full training; LoRA trains a few."""
    assert sum(states_bytes(100).values()) == 1600
    assert states_bytes(100, trained=1) == {"weights": 400, "gradients": 4, "optimizer": 8}
    with pytest.raises(ValueError, match="101 of 100"):
        states_bytes(100, trained=101)


def test_the_seven() -> None:
    """A row for each, and eager above flash in all."""
    table = seven_models()
    assert list(table.index) == list(SEVEN)
    assert (table["ratio, eager"] > table["ratio, flash"]).all()
    assert table.loc["facebook/opt-350m", "ratio, flash"] == pytest.approx(2.83, abs=0.01)
    assert table.loc["Qwen/Qwen2.5-7B", "KV cache (GB)"] == pytest.approx(1.879, abs=0.001)


def test_bad_input() -> None:
    """Lengths below one and another attention are refused, with what is possible."""
    with pytest.raises(ValueError, match="seq_len is -5"):
        activation_bytes(OPT, 1, -5)
    with pytest.raises(ValueError, match="batch_size is 0"):
        key_value_cache_bytes(OPT, 0, 10)
    with pytest.raises(UnknownName, match="flash_attention_2"):
        activation_bytes(OPT, 1, 10, "flash")
