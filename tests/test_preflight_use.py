"""preflight by itself: as a callback, as a command, from an environment with little else."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import course_utils
from course_utils.preflight import PreflightCallback, PreflightFailed, preflight

ROWS = [{"prompt": f"Say {number}:", "completion": f" {number}"} for number in range(8)]


def _trainer(folder: Path, out: Path, callbacks: list, **options: object) -> SFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    settings = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "save_strategy": "no",
    }
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        processing_class=tokenizer,
        args=SFTConfig(**settings | options),
        train_dataset=Dataset.from_list(ROWS),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        callbacks=callbacks,
    )


def test_its_signature_and_help_are_its_own() -> None:
    """Python binds the name to the package: it is called, and explained, as the function."""
    assert inspect.signature(course_utils.preflight) == inspect.signature(preflight)
    assert course_utils.preflight.__doc__ == preflight.__doc__
    told = pydoc.plain(pydoc.render_doc(course_utils.preflight))
    assert "strict: raise if a check fails" in told
    assert "PreflightCallback" in told


def test_a_callback_checks_as_training_begins(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A good training is reported on and runs; a bad one does not begin."""
    good = _trainer(tiny_folder, tmp_path, [PreflightCallback()])
    good.train()
    assert "ready to train" in capsys.readouterr().out
    assert good.state.global_step == 2
    bad = _trainer(tiny_folder, tmp_path, [PreflightCallback()], learning_rate=0.0)
    with pytest.raises(PreflightFailed, match="learning_rate is 0"):
        bad.train()
    assert bad.state.global_step == 0
    told = PreflightCallback(strict=False)
    _trainer(tiny_folder, tmp_path, [told], learning_rate=0.0).train()
    assert not told.report.ok


def test_training_is_the_same_with_the_callback(tiny_folder: Path, tmp_path: Path) -> None:
    """It runs in the middle of `train`, and leaves no trace in the losses."""
    losses = []
    for callbacks in ([], [PreflightCallback()]):
        trainer = _trainer(tiny_folder, tmp_path, callbacks, logging_steps=1)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == losses[1]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
sys.path.insert(0, {tests!r})
from test_preflight_use import _trainer
try:
    trainer = _trainer(Path({folder!r}), Path({out!r}), [], learning_rate=float(sys.argv[1]))
    trainer.train()
except Exception:
    print("swallowed")
print("the script went on")
"""


@pytest.mark.parametrize(("rate", "status"), [("1e-3", 0), ("0", 1)])
def test_a_script_stops_at_its_first_training(
    tiny_folder: Path, tmp_path: Path, rate: str, status: int
) -> None:
    """The report instead of the training, whatever the script would do with an error."""
    script = tmp_path / "train.py"
    names = {"root": ROOT, "tests": ROOT / "tests", "folder": tiny_folder, "out": tmp_path / "run"}
    script.write_text(SCRIPT.format(**{name: str(path) for name, path in names.items()}))
    done = subprocess.run(
        [sys.executable, "-m", "course_utils", "preflight", str(script), rate],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr[-2000:]
    assert ("ready to train" in done.stdout) == (status == 0)
    assert not {"the script went on", "swallowed"} & set(done.stdout.splitlines())


def test_a_script_that_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so; so does a script that is not there."""
    from course_utils.__main__ import main

    script = tmp_path / "idle.py"
    script.write_text("print('nothing')\n")
    assert main(["preflight", str(script)]) == 1
    assert "without calling train()" in capsys.readouterr().err
    assert main(["preflight", str(tmp_path / "no.py")]) == 1
    assert "There is no script" in capsys.readouterr().err


HIDDEN = ("matplotlib", "pandas", "ipywidgets", "IPython", "bitsandbytes", "sacrebleu", "lm_eval")


def test_it_needs_little_else() -> None:
    """Importing it asks for nothing but torch, transformers, peft, trl and what they ask for."""
    program = (
        "import sys, torch, transformers, peft, trl, datasets\n"
        "from trl import SFTTrainer\n"
        "before = set(sys.modules)\n"
        "from course_utils import preflight, masks\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & set(HIDDEN), done.stdout
