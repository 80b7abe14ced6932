"""Rehearsals: the pretended GPU is a strict one, and what the notebooks train fits into real ones.

A whole rehearsal takes a minute: `make rehearse NB=03.1 TIER=16gb`.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from course_utils.memory import Prediction, Setup, gpu, predict, usable_bytes
from course_utils.models import catalog, recipe
from tools import rehearse

CARDS = {"16gb": "t4", "24gb": "l4", "40gb": "a100-40gb"}
BESIDE_MB = 300  # the course's own small models, activations of a reply, what is not freed


def dtypes(tier: str) -> dict[str, Any]:
    """What `pick_dtype` leads to: weights and mixed precision."""
    half = gpu(CARDS[tier]).computes_bfloat16
    return {
        "dtype": "bfloat16" if half else "float16",
        "mixed_precision": "bf16" if half else "fp16",
    }


LORA: dict[str, Any] = {"lora": True, "lora_rank": 16, "lora_targets": "all-linear"}


def pig_latin(tier: str, model: str) -> Setup:
    """Notebook 03.1: the longest sentence, spelled twice, has 254 tokens with SmolLM2."""
    plan = recipe("pig_latin", tier)
    sizes = {"batch_size": plan["batch"], "seq_len": 256, "sequences": "padded"}
    return Setup(model, **LORA, lora_dropout=0.0, checkpointing="none", **sizes, **dtypes(tier))


def yoda(tier: str, model: str) -> Setup:
    """Notebook 03.2: a system prompt, and a sentence twice."""
    plan = recipe("yoda", tier)
    sizes = {"batch_size": plan["batch"], "seq_len": 128, "sequences": "padded"}
    return Setup(model, **LORA, lora_dropout=0.0, checkpointing="none", **sizes, **dtypes(tier))


def instructions(tier: str, model: str) -> Setup:
    """Notebook 06, its last section: at most 512 tokens."""
    plan = recipe("instructions", tier)
    sizes = {"batch_size": plan["batch"], "seq_len": 512}
    return Setup(model, **LORA, lora_dropout=0.0, checkpointing="none", **sizes, **dtypes(tier))


def qlora(tier: str, model: str, name: str, seq_len: int) -> Setup:
    """Notebook 07: QLoRA's recipe. Where float16 is used, the adapter is cast to float32."""
    plan = recipe(name, tier)
    half = dtypes(tier)
    return Setup(
        model,
        **LORA,
        lora_dropout=0.05,
        quantization="nf4-double",
        kbit_preparation=True,
        optimizer="paged_adamw_8bit",
        checkpointing="reentrant",
        batch_size=plan["batch"],
        accumulation=plan["accumulation"],
        seq_len=seq_len,
        adapter_dtype="float32" if half["mixed_precision"] == "fp16" else None,
        **half,
    )


def guanaco(tier: str, model: str) -> Setup:
    """Notebook 07, on Guanaco: at most 512 tokens."""
    return qlora(tier, model, "guanaco", 512)


def style(tier: str, model: str) -> Setup:
    """Notebook 07, the new style, and exercise 07.3: a system prompt, a question, a sentence."""
    return qlora(tier, model, "style", 128)


@functools.cache
def predicted(name: str, tier: str, model: str) -> Prediction:
    """A training's prediction; each is made once."""
    return predict(globals()[name](tier, model), CARDS[tier])


def weights_mb(name: str, tier: str, model: str) -> float:
    """What a model takes that stays from an earlier training."""
    return predicted(name, tier, model).phases["weights"]


# A notebook's training: the role it trains, and the roles of models that are there meanwhile.
TRAININGS = {
    "03.1": ("pig_latin", "chat", ["chat"]),
    "03.2": ("yoda", "chat", ["chat"]),
    "06": ("instructions", "pythia", []),
    # Each model is released before the next one is loaded, the base first; the same for 07.3.
    "07, Guanaco, base": ("guanaco", "tuning_base", []),
    "07, Guanaco, chat": ("guanaco", "tuning_chat", []),
    "07, the style": ("style", "tuning_chat", []),
}


def each_training() -> Iterator[Any]:
    """Every notebook's training on every tier."""
    for name in TRAININGS:
        for tier in CARDS:
            yield pytest.param(name, tier, id=f"{name} on {tier}")


@pytest.mark.parametrize(("name", "tier"), list(each_training()))
def test_what_a_tier_trains_fits_its_gpu(name: str, tier: str) -> None:
    """With the CUDA context, and with whatever else the notebook holds at that moment.

    Of a role's models each is tried, in the order of access: the gated one, the free one.
    """
    training, role, others = TRAININGS[name]
    roles = catalog().roles
    room = usable_bytes(CARDS[tier]) / 1e6
    said = []
    for place, model in enumerate(roles[role].by_tier[tier]):
        found = predicted(training, tier, model)
        held = float(BESIDE_MB)
        for other in others:
            names = roles[other].by_tier[tier]
            held += weights_mb(training, tier, names[min(place, len(names) - 1)])
        if found.peak_reserved_mb + held > room:
            said.append(f"{model}: {found.peak_reserved_mb:,.0f} MB, and {held:,.0f} MB beside it")
    assert not said, f"of {room:,.0f} MB: {'; '.join(said)}"


def test_what_there_is_to_rehearse_is_said() -> None:
    """An unknown tier or notebook is answered with those there are."""
    with pytest.raises(SystemExit, match=r"no tier '80gb'.*16gb, 24gb, 40gb"):
        rehearse.main(["00", "80gb"])
    with pytest.raises(SystemExit, match=r"no notebook '99'.*03.1_pig_latin"):
        rehearse.main(["99", "16gb"])


STRICT = """
import sys
sys.path.append(ROOT)
from tools import pretend_gpu
pretend_gpu.start("16gb")
import torch
from course_utils import hardware


def refused(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("not refused")


assert hardware.tier().value == "16gb"
assert hardware.pick_dtype().value == torch.float16
layer = torch.nn.Linear(4, 4).to("cuda")
there = torch.randn(2, 4, device="cuda")
assert (layer(there) * 2).device == torch.device("cuda", 0)
assert there.cpu().numpy().shape == (2, 4)
assert "same device" in refused(RuntimeError, lambda: layer(torch.randn(2, 4)))
assert "Tensor.cpu()" in refused(TypeError, lambda: there.numpy())
layer(there).sum().backward()
assert layer.weight.grad.device.type == "cuda"

half = torch.nn.Linear(4, 4, dtype=torch.float16, device="cuda")
optimizer = torch.optim.SGD(half.parameters())
scaler = torch.amp.GradScaler("cuda")
scaler.scale(half(there.half()).sum()).backward()
assert "FP16 gradients" in refused(ValueError, lambda: scaler.unscale_(optimizer))
pretend_gpu.state.scaled = False
optimizer.step()
assert pretend_gpu.state.rules == ["float16 weights are trained, without loss scaling"]

with torch.autocast("cuda"):
    assert layer(there).dtype == torch.float16
with pretend_gpu.unpretended():
    assert not torch.cuda.is_available() and there.device.type == "cpu"
print("as a GPU")
"""


def test_a_pretended_gpu_is_as_strict_as_a_real_one() -> None:
    """Operands on two devices, NumPy, float16 weights under a scaler: refused as on a T4."""
    code = STRICT.replace("ROOT", repr(str(ROOT)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "as a GPU", done.stderr


def test_stand_ins_are_of_the_kind_of_the_real_ones(tmp_path: Path) -> None:
    """Architecture, special tokens and template are the family's; the sizes are not."""
    from transformers import AutoConfig, AutoTokenizer

    said = {}
    for model in ("meta-llama/Llama-2-7b-chat-hf", "Qwen/Qwen2.5-7B", "EleutherAI/pythia-410m"):
        folder = rehearse.write_model(model, tmp_path / model)
        made, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
        assert config.model_type == catalog().models[model].config().model_type
        assert config.vocab_size > len(made)
        assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6
        assert made.decode(made("My old book")["input_ids"]).endswith("My old book")
        said[model] = (made("My")["input_ids"][0] == made.bos_token_id, made.pad_token)
        if made.chat_template:
            asked = [{"role": "user", "content": "Hi"}]
            said[model] += (made.apply_chat_template(asked, tokenize=False)[:10],)
    assert list(said.values()) == [
        (True, None, "<s>[INST] "),
        (False, "<|endoftext|>", "<|im_start"),
        (False, None),
    ]


SOURCE = """
# %% [markdown]
# # 99 · A rehearsal

# %%
import torch

from course_utils import load_model
from course_utils.hardware import tier

model = load_model("chat")
on_cpu = model.device.type == "cpu"
print(tier().value, model.num_parameters())

# %%
if on_cpu:
    print("never")
else:
    model(torch.zeros(1, 3, dtype=torch.long, device=model.device))

# %%
ids = torch.zeros(1, 3, dtype=torch.long)
made = model(ids)

# %%
print(made)
"""


@pytest.mark.notebook
def test_a_rehearsal_finds_what_a_gpu_would_refuse(
    tmp_path: Path, chat_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """The cell with tensors on two devices, what follows from it, and the branch that never ran."""
    source = tmp_path / "99_rehearsal.py"
    source.write_text(SOURCE.lstrip(), encoding="utf-8")
    server = rehearse.hub(tmp_path / "hub")
    try:
        result = rehearse.rehearse(source, "16gb", tmp_path / "work", server.port)
    finally:
        server.close()
    lines = SOURCE.lstrip().split("\n")
    first, second = result.failures
    assert (first.line, first.follows) == (lines.index("made = model(ids)") + 1, False)
    assert "same device" in first.error
    assert (second.line, second.follows) == (lines.index("print(made)") + 1, True)
    assert not result.ok
    assert result.cells >= 4
    missed = rehearse.never_run(source, [result.ran])
    assert [lines[line - 1] for line in missed] == ['    print("never")']
    assert f"line {first.line}" in rehearse.told(result)
