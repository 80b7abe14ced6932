"""Loading: what is taken, what is printed, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from course_utils.errors import NotEnoughDisk, NotEnoughMemory, UnknownName, UnsafeFormat
from course_utils.hardware import Hardware, pick_dtype
from course_utils.models import _hub as hub
from course_utils.models._loading import (
    check_memory,
    load_model,
    load_tokenizer,
    resolve,
    weight_bytes,
)
from course_utils.models._quantization import BYTES_PER_PARAMETER, NAMES


def test_a_role_on_a_cpu_is_embedded(capsys: pytest.CaptureFixture, chat_folder: Path) -> None:
    """The chat role loads the embedded model, says so, and why its dtype."""
    model = load_model("chat")
    printed = capsys.readouterr().out
    assert printed.startswith("chat: HuggingFaceTB/SmolLM2-135M-Instruct, embedded\n")
    assert pick_dtype().reason in printed
    assert model.num_parameters() == 134515008
    assert model.dtype == pick_dtype().value
    assert not model.training
    assert model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_base_role_is_the_courses_own(capsys: pytest.CaptureFixture) -> None:
    """Offline, the base side is a true base model, which travels in the package."""
    for name in ("base", "pythia", "course/pythia-3m"):
        origin = resolve(name)
        assert (origin.id, origin.where) == ("course/pythia-3m", "embedded")
        assert "the course's own base model" in " ".join(origin.notes)
    model = load_model("base")
    assert model.config.model_type == "gpt_neox"
    assert capsys.readouterr().out.startswith("base: course/pythia-3m, embedded\n")
    assert load_tokenizer("base").chat_template is None


def test_the_courses_own_models_need_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU tier, too, and with no hub at all."""
    monkeypatch.setattr("course_utils.models._hub.reachable", lambda: False)
    machine = Hardware(gpu_name="T4", gpu_memory_gb=16.0, gpu_capability=(7, 5))
    for name in ("course/pythia-3m", "course/pythia-3m-control"):
        assert resolve(name, hardware=machine).folder.is_dir()
    origin = resolve("pythia", hardware=machine)
    assert origin.id == "course/pythia-3m"
    assert "EleutherAI/pythia-410m" in " ".join(origin.notes)


def test_tokenizer_belongs_to_its_model(chat_folder: Path) -> None:
    """ChatML, pad and EOS tokens, the model's length."""
    tokenizer = load_tokenizer("chat")
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 8192
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    text = "Numbers 12345, apostrophes don't, and\n\nlines."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_folder_loads(tiny_folder: Path) -> None:
    """A model saved by the learner loads from its folder."""
    assert resolve(tiny_folder).where == "folder"
    assert load_model(tiny_folder, quiet=True).config.hidden_size == 32


@pytest.mark.parametrize("name", ["chta", "HuggingFaceTB/SmolLM2-135", "not a model!"])
def test_unknown_names(name: str) -> None:
    """Offline, an id that nobody knows is refused, with what is known."""
    with pytest.raises(UnknownName, match=r"SmolLM2-135M|chat"):
        load_model(name)


def test_unknown_source_and_unknown_quantization(chat_folder: Path) -> None:
    """Options are checked like names."""
    with pytest.raises(UnknownName, match="embedded"):
        load_model("chat", source="embeded")
    with pytest.raises(UnknownName, match="nf4"):
        load_model("chat", "nf5")
    with pytest.raises(UnknownName, match="chat"):
        load_model("facebook/opt-350m", source="embedded")


def test_remote_code_and_unpickling_are_refused(tiny_folder: Path) -> None:
    """The options that would run a stranger's code are errors; turning them off is not."""
    with pytest.raises(UnsafeFormat, match="trust_remote_code"):
        load_model(tiny_folder, trust_remote_code=True)
    with pytest.raises(UnsafeFormat, match="trust_remote_code"):
        load_tokenizer(tiny_folder, trust_remote_code=True)
    with pytest.raises(UnsafeFormat, match="safetensors"):
        load_model(tiny_folder, use_safetensors=False)
    with pytest.raises(UnsafeFormat, match="safetensors"):
        load_model(tiny_folder, weights_only=False)
    load_model(tiny_folder, trust_remote_code=False, quiet=True)


def test_a_folder_of_pickles_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """A pickled checkpoint is never opened, though its configuration is fine."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(tiny_folder / "config.json", folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFormat, match=r"pytorch_model\.bin"):
        load_model(folder)


def test_an_architecture_from_the_future_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """A model type that transformers does not know is named."""
    folder = tmp_path / "future"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llama99"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownName, match="llama99"):
        load_model(folder)


def test_too_little_memory_is_said_before_loading(chat_folder: Path) -> None:
    """The need, what is free, and what would fit: a quantization, smaller models."""
    with pytest.raises(NotEnoughMemory) as error:
        check_memory(chat_folder, torch.float32, None, int(0.45e9), "chat")
    text = str(error.value)
    assert "0.6 GB of RAM" in text  # 134.5 M parameters of 4 bytes, and the overhead
    assert "0.5 GB" in text or "0.4 GB" in text
    assert 'quantization="8bit"' in text
    assert "EleutherAI/pythia-70m" in text
    check_memory(chat_folder, torch.float32, None, int(2e9), "chat")


def test_load_model_checks_memory(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is made with what is really free: here, next to nothing."""
    import psutil

    memory = psutil.virtual_memory()._replace(available=10**6)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(NotEnoughMemory, match="nothing"):
        load_model("chat")


def test_too_little_disk(tmp_path: Path) -> None:
    """The place, the need and the way out are named, also for a folder that is not there yet."""
    with pytest.raises(NotEnoughDisk, match=re.escape(str(tmp_path))):
        hub.check_disk(tmp_path / "not" / "yet", 10**18, "a model")
    hub.check_disk(tmp_path / "not" / "yet", 1, "a model")


@pytest.mark.parametrize("quantization", [None, *NAMES])
def test_estimated_bytes_are_what_loading_takes(
    quantization: str | None, chat_folder: Path
) -> None:
    """The estimate by which a model is refused is within 3% of the loaded model's size."""
    estimated = weight_bytes(chat_folder, torch.bfloat16, quantization)
    model = load_model("chat", quantization, dtype=torch.bfloat16, quiet=True)
    taken = model.get_memory_footprint()
    if quantization and quantization != "8bit":
        # transformers counts the codes, not the scales that the quantization state holds.
        linear = model.num_parameters() - model.get_input_embeddings().weight.numel()
        taken += linear * (BYTES_PER_PARAMETER[quantization] - 0.5)
    assert estimated == pytest.approx(taken, rel=0.03)
