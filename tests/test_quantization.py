"""Quantization by plain names, and the gradients after a generation."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import pytest
import torch
from bitsandbytes.nn import Linear4bit

from course_utils.errors import UnknownName
from course_utils.hardware import detect
from course_utils.models._loading import load_model, load_tokenizer
from course_utils.models._quantization import NAMES, quantization_config


def test_names() -> None:
    """Each plain name is the configuration that it says."""
    assert quantization_config("8bit", torch.float32).load_in_8bit
    for name in NAMES[1:]:
        config = quantization_config(name, torch.bfloat16)
        assert config.load_in_4bit
        assert config.bnb_4bit_quant_type == name[:3]
        assert config.bnb_4bit_use_double_quant == name.endswith("-double")
        assert config.bnb_4bit_compute_dtype == torch.bfloat16
    with pytest.raises(UnknownName, match="nf4-double"):
        quantization_config("nf4_double", torch.float32)


def _embedding_gradient(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The loss's gradient by the input embeddings: it has passed back through every layer."""
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded, labels=ids).loss.backward()
    return embedded.grad.float()


def _similarity(first: torch.Tensor, second: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), 0).item()


def _dequantized(model: torch.nn.Module) -> torch.nn.Module:
    """The model in full precision with the very weights that the 4-bit codes stand for."""
    plain = load_model("chat", dtype=torch.float32, quiet=True)
    modules = dict(plain.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(
                module.weight.data, module.weight.quant_state
            )
            modules[name].weight.data = weight.float()
    return plain


@pytest.fixture(scope="module")
def ids(chat_folder: Path) -> torch.Tensor:
    """A sentence as token ids, shape (1, tokens)."""
    text = "The librarian waters the plum trees before the doors open."
    return load_tokenizer("chat")(text, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("name", ["nf4", "fp4-double"])
def test_gradients_are_right_after_a_generation(name: str, ids: torch.Tensor) -> None:
    """Generate first, in eval mode; the gradients still are the dequantized model's."""
    model = load_model("chat", name, dtype=torch.float32, quiet=True)
    reference = _dequantized(model)
    model.generate(ids, max_new_tokens=3, do_sample=False)
    model.train()
    expected = _embedding_gradient(reference, ids)
    found = _embedding_gradient(model, ids)
    assert _similarity(found, expected) > 0.999
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=0.02)


def test_the_trap_is_real_where_it_is_open(ids: torch.Tensor) -> None:
    """Without the protection, such a CPU trains on wrong gradients: the test above can fail."""
    if "avx512_bf16" not in detect().cpu_features or detect().device == "cuda":
        pytest.skip("the trap needs a CPU with avx512_bf16")
    model = load_model("chat", "nf4", dtype=torch.float32, quiet=True)
    expected = _embedding_gradient(_dequantized(model), ids)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    model.generate(ids, max_new_tokens=3, do_sample=False)
    model.train()
    try:
        found = _embedding_gradient(model, ids)
    except RuntimeError:
        return  # some architectures fail loudly instead
    assert _similarity(found, expected) < 0.9


@pytest.mark.parametrize("name", ["8bit", "nf4-double"])
def test_a_quantized_model_still_answers(name: str, ids: torch.Tensor) -> None:
    """The likeliest token after a fact survives quantization."""
    model = load_model("chat", name, quiet=True)
    tokenizer = load_tokenizer("chat")
    prompt = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
    with torch.inference_mode():
        best = model(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
