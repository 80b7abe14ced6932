"""`scripts/finetune.py`: the same training on any engine, and what becomes of it when it fails."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from ranks import Ran, Ranks
from safetensors.torch import load_file

SAME = 1e-5
STEPS = 6
WORDS = ("red", "blue", "green", "one", "and", "then", "so")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and a vocabulary of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tool = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tool.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tool.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tool,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions with answers of 1 to 23 words, so that batches differ in tokens."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"question": f"Say {row}", "answer": " ".join(draw.choices(WORDS, k=1 + 5 * row % 23))}
        for row in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Starts trainings."""
    started = Ranks(tmp_path_factory.mktemp("ranks"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def options(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A configuration file of a small LoRA training in float32, as the script's first options."""
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(
        f"""
data: {data}
prompt_column: question
completion_column: answer
model_name_or_path: {model}
use_peft: true
lora_r: 4
lora_alpha: 8
lora_dropout: 0.0
lora_target_modules: [all-linear]
max_steps: {STEPS}
effective_batch_size: 8
per_device_train_batch_size: 2
learning_rate: 1.0e-2
logging_steps: 1
save_steps: 2
bf16: false
use_cpu: true
gradient_checkpointing: false
report_to: none
disable_tqdm: true
seed: 0
"""
    )
    return ["--config", str(config)]


@pytest.fixture(scope="module")
def alone(ranks: Ranks, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The training on one process, which all others are compared with."""
    out = tmp_path_factory.mktemp("alone")
    ran = ranks.run(1, *options, "--output_dir", out)
    assert ran.statuses == [0], ran.everything
    ran.out = out
    return ran


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that a training has written."""
    tensors = load_file(folder / "final" / "adapter_model.safetensors")
    assert len(tensors) == 28
    assert all(tensor.numel() for tensor in tensors.values())
    assert any(t.abs().max() > 0 for name, t in tensors.items() if "lora_B" in name)
    return tensors


def farthest(one: list[float], other: list[float]) -> float:
    """How far two curves are from each other at most."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def read_at(ran: Ran) -> dict[int, list[tuple[int, ...]]]:
    """The examples that all ranks have read in each step, without padding, sorted."""
    steps: dict[int, list[tuple[int, ...]]] = {}
    for found in ran.found:
        for step, *ids in found.get("examples", []):
            while len(ids) > 1 and ids[-1] == ids[-2]:
                ids.pop()
            steps.setdefault(step, []).append(tuple(ids))
    return {step: sorted(rows) for step, rows in steps.items()}


def same_training(ran: Ran, folder: Path, alone: Ran) -> None:
    """The losses, the examples of each step and the adapter are those of one process."""
    assert ran.statuses == [0] * len(ran.statuses), ran.everything
    assert farthest(ran.losses, alone.losses) < SAME
    assert read_at(ran) == read_at(alone)
    ours, theirs = adapter(folder), adapter(alone.out)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


def test_two_processes_train_as_one(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path
) -> None:
    """DDP at the same effective batch size; afterwards, both ranks have the same weights."""
    ran = ranks.run(2, *options, "--output_dir", tmp_path)
    same_training(ran, tmp_path, alone)
    assert ran.found[0]["weights"]
    assert ran.found[0]["weights"] == ran.found[1]["weights"]
    assert ran.losses[0] - ran.losses[-1] > 0.05


def test_the_trap_of_averages_of_averages(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path
) -> None:
    """If each process divides by its own tokens, short answers count more: another curve."""
    wrong = ["--average_tokens_across_devices", "false"]
    ran = ranks.run(2, *options, *wrong, "--output_dir", tmp_path)
    assert ran.statuses == [0, 0], ran.everything
    assert read_at(ran) == read_at(alone)
    assert farthest(ran.losses, alone.losses) > 100 * SAME


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fsdp2_trains_as_one(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path, method: str
) -> None:
    """FSDP2 over gloo; what is saved is whole, though each rank has a half of it."""
    if method == "lora":
        ran = ranks.run(2, *options, "--output_dir", tmp_path, env=FSDP)
        same_training(ran, tmp_path, alone)
        return
    full = [*options, "--use_peft", "false", "--learning_rate", "1e-3", "--save_strategy", "no"]
    one = ranks.run(1, *full, "--output_dir", tmp_path / "one")
    two = ranks.run(2, *full, "--output_dir", tmp_path / "two", env=FSDP)
    assert (one.statuses, two.statuses) == ([0], [0, 0]), two.everything
    assert farthest(one.losses, two.losses) < SAME
    ours, theirs = (load_file(tmp_path / n / "final/model.safetensors") for n in ("one", "two"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


def resumed(ran: Ran, folder: Path, alone: Ran, done: int) -> None:
    """The steps after a checkpoint are those of a training that nobody disturbed."""
    assert ran.statuses == [0] * len(ran.statuses), ran.everything
    assert farthest(ran.losses, alone.losses[done:]) < SAME
    assert read_at(ran) == {step: rows for step, rows in read_at(alone).items() if step > done}
    ours, theirs = adapter(folder), adapter(alone.out)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_killed_and_resumed_on_another_number_of_processes(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path, before: int, after: int
) -> None:
    """Rank 0 or 1 is killed in step 3 or 5; the others end; the curve is that of one process."""
    step = 5 if before == 1 else 3
    ran = ranks.run(before, *options, "--output_dir", tmp_path, kill={before - 1: step})
    assert ran.statuses[-1] == -signal.SIGKILL
    assert all(status != 0 for status in ran.statuses)
    assert not list(tmp_path.glob("final*"))
    again = ranks.run(after, *options, "--output_dir", tmp_path)
    resumed(again, tmp_path, alone, step - 1)


def test_sigterm_to_one_process_saves_the_step_of_all(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path
) -> None:
    """All ranks stop after the same step, with a status of their own; then the training goes on."""
    ran = ranks.run(2, *options, "--output_dir", tmp_path, terminate={1: 3})
    assert ran.statuses == [143, 143], ran.everything
    assert "Stopped by SIGTERM at step 3." in ran.told[0]
    assert (tmp_path / "checkpoint-3" / "trainer_state.json").exists()
    assert not list(tmp_path.glob("final*"))
    resumed(ranks.run(1, *options, "--output_dir", tmp_path), tmp_path, alone, 3)
    # Started once more, it has nothing to train and writes the same adapter.
    again = ranks.run(1, *options, "--output_dir", tmp_path, preflight=True)
    assert again.statuses == [0], again.everything
    assert not again.losses
    assert adapter(tmp_path)


def test_an_interrupted_checkpoint_is_not_resumed_from(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path
) -> None:
    """Killed before a checkpoint is complete, a training goes on from the one before."""
    ran = ranks.run(1, *options, "--output_dir", tmp_path, hang_up=4)
    assert ran.statuses == [-signal.SIGKILL]
    assert (tmp_path / "checkpoint-4").exists()
    again = ranks.run(1, *options, "--output_dir", tmp_path)
    assert "checkpoint-4 is incomplete" in again.everything
    resumed(again, tmp_path, alone, 2)


@pytest.mark.slow
def test_fsdp2_resumed_on_four_processes(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path
) -> None:
    """Both ranks of two are killed; four go on; another engine cannot, and says so."""
    ran = ranks.run(2, *options, "--output_dir", tmp_path, env=FSDP, kill={0: 3, 1: 3})
    assert ran.statuses == [-signal.SIGKILL] * 2, ran.everything
    other = ranks.run(1, *options, "--output_dir", tmp_path)
    assert other.statuses == [1]
    assert "engine was fsdp and is one process or DDP" in other.everything
    again = ranks.run(4, *options, "--output_dir", tmp_path, env=FSDP)
    resumed(again, tmp_path, alone, 2)


def test_uneven_last_batches_end(
    ranks: Ranks, options: list[str], data: Path, tmp_path: Path
) -> None:
    """Eleven examples on two processes: each epoch ends, the last step filled up from the start."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(data.read_text().splitlines(keepends=True)[:11]))
    own = ["--data", few, "--max_steps", -1, "--num_train_epochs", 2, "--save_strategy", "no"]
    ran = ranks.run(2, *options, *own, "--output_dir", tmp_path / "out")
    assert ran.statuses == [0, 0], ran.everything
    assert [len(rows) for rows in read_at(ran).values()] == [8, 4, 8, 4]
    assert adapter(tmp_path / "out")


def test_preflight_of_several_processes(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path
) -> None:
    """The first process reports; what fails there ends all; what passes changes nothing."""
    bad = ranks.run(
        2, *options, "--learning_rate", 0, "--output_dir", tmp_path / "bad", preflight=True
    )
    assert bad.statuses == [1, 1], bad.everything
    assert "The training is not ready" in bad.told[0]
    assert "learning_rate is 0" in bad.told[0]
    good = ranks.run(2, *options, "--output_dir", tmp_path, preflight=True)
    assert "ready to train" in good.told[0]
    assert "checks" not in good.told[1]
    same_training(good, tmp_path, alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/rows.jsonl"], "There is no file no/rows.jsonl"),
        (["--prompt_column", "qestion"], "has no column qestion. It has the columns question"),
        (["--effective_batch_size", "7"], "take a multiple of 4"),
        (["--effective_batch_size", "2"], "take a multiple of 4"),
        (["--lora_rank", "4"], "The configuration cannot be used"),
        (["--use_cpu", "false"], "2 processes were started here, and no GPU was found"),
        (["--trust_remote_code", "true"], "leave trust_remote_code out"),
        (["--model_name_or_path", "no/model"], "The model no/model cannot be loaded"),
        (["--config", "no.yaml"], "The configuration cannot be used"),
    ],
)
def test_bad_input_ends_all_processes(
    ranks: Ranks, options: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    """They say what is wrong and leave nothing that looks like a result."""
    base = [] if arguments[0] == "--config" else options
    ran = ranks.run(2, *base, "--output_dir", tmp_path / "out", *arguments)
    assert ran.statuses == [1, 1], ran.everything
    assert message in ran.told[0]
    assert "Traceback" not in ran.told[0]
    left = [path.name for path in (tmp_path / "out").rglob("*")]
    assert left in ([], ["settings.json"])


def test_a_tracker_that_is_not_installed(ranks: Ranks, options: list[str], tmp_path: Path) -> None:
    """It is named, with the way to install it."""
    missing = [name for name in ("trackio", "tensorboard") if not _installed(name)]
    if not missing:
        pytest.skip("both are installed")
    ran = ranks.run(1, *options, "--output_dir", tmp_path, "--report_to", missing[0])
    assert ran.statuses == [1]
    assert f"pip install {missing[0]}" in ran.everything


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_a_checkpoint_of_another_training(
    ranks: Ranks, options: list[str], alone: Ran, tmp_path: Path
) -> None:
    """Its settings tell; without them, the libraries find out; the checkpoint stays as it was."""
    folder = tmp_path / "out"
    shutil.copytree(alone.out, folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ran = ranks.run(2, *options, "--output_dir", folder, "--lora_r", 8)
    assert ran.statuses == [1, 1], ran.everything
    assert "belongs to another training: lora_r was 4 and is 8" in ran.told[0]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "settings.json").unlink()
    ran = ranks.run(2, *options, "--output_dir", folder, "--lora_r", 8)
    assert all(ran.statuses)
    assert "size mismatch" in ran.everything
    assert not (folder / "final").exists()


def torchrun(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the script as a learner does."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def test_a_port_that_is_taken(options: list[str], tmp_path: Path) -> None:
    """The launcher names the port and ends."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = torchrun(
            *("--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port),
            *("scripts/finetune.py", *options, "--output_dir", tmp_path),
        )
    assert done.returncode != 0
    assert "EADDRINUSE" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torchrun_and_a_rank_that_dies(options: list[str], alone: Ran, tmp_path: Path) -> None:
    """Started by torchrun, killed at a random moment with all processes, and started again."""
    command = ["--standalone", "--nproc_per_node", 2, "scripts/finetune.py", *options]
    command += ["--output_dir", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    from processes import until

    until(lambda: (tmp_path / "checkpoint-2").exists() or process.poll() is not None, "a step", str)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = torchrun(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = adapter(tmp_path), adapter(alone.out)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)
