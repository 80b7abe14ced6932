"""API drift: the libraries have what the sources use, and what is gone is named."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from tools import drift


def read(text: str, returns: dict[str, list[str]] | None = None) -> dict[str, set[str]]:
    """What a source uses: the dotted names that may be meant, to arguments."""
    found = drift.Uses()
    drift.Reader("x.py", returns or {}, found).visit(ast.parse(text))
    return {"|".join(names): use.arguments for names, use in found.items()}


def told(text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The differences that a source would have."""
    found = drift.Uses()
    drift.Reader("x.py", {}, found).visit(ast.parse(text))
    monkeypatch.setattr(drift, "uses", lambda by_hand: found)
    return drift.differences()


def test_the_installed_libraries_have_what_the_course_calls() -> None:
    """By name; `make drift` says the same for the lowest and the newest versions."""
    assert not drift.differences()


def test_what_matters_is_read() -> None:
    """In notebooks and helpers."""
    by_hand = tomllib.loads(drift.BY_HAND.read_text(encoding="utf-8"))
    used = {name: use.arguments for names, use in drift.uses(by_hand).items() for name in names}
    assert {"max_length", "bf16", "max_steps", "eval_strategy"} <= used["trl.SFTConfig"]
    assert {"processing_class", "peft_config"} <= used["trl.SFTTrainer"]
    assert {"r", "lora_alpha", "target_modules"} <= used["peft.LoraConfig"]
    assert {"quantization_config", "dtype"} <= used[
        "transformers.AutoModelForCausalLM.from_pretrained"
    ]
    assert "resume_from_checkpoint" in used["trl.SFTTrainer.train"]
    assert {"peft.prepare_model_for_kbit_training", "bitsandbytes.nn.Linear4bit"} <= set(used)
    assert any(name.startswith("lm_eval.") for name in used)
    assert any(name.startswith("openai.") for name in used)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from trl import SFTConfig\nSFTConfig(max_length=1)", {"trl.SFTConfig": {"max_length"}}),
        ("import trl as t\nt.SFTConfig(**{'a': 1})", {"trl.SFTConfig": {"a"}}),
        (
            "from trl import SFTConfig\nshared = {'a': 1}\nSFTConfig(**{**shared, 'b': 2})",
            {"trl.SFTConfig": {"a", "b"}},
        ),
        (
            "from trl import SFTTrainer\ntrainer = SFTTrainer()\ntrainer.train(x=1)",
            {"trl.SFTTrainer": set(), "trl.SFTTrainer.train": {"x"}},
        ),
        (
            "from transformers import Trainer\ndef look(trainer: Trainer):\n    trainer.see(by=1)",
            {"transformers.Trainer": set(), "transformers.Trainer.see": {"by"}},
        ),
        (
            "from peft import LoraConfig\nwith LoraConfig() as a:\n    a(1, x=2)",
            {"peft.LoraConfig": set(), "peft.LoraConfig.__call__": {"x"}},
        ),
        (
            "import torch\nmodel = torch.nn.Linear(1, 1)\ndef f(model):\n    model.go()",
            {"torch.nn.Linear": set()},
        ),
        ("from pathlib import Path\nPath('x').open(mode='r')", {}),
    ],
    ids=lambda value: value.splitlines()[-1][:30] if isinstance(value, str) else "",
)
def test_reading(text: str, found: dict[str, set[str]]) -> None:
    """Imports, aliases, options in dictionaries, methods; a parameter hides what is outside."""
    assert read(text) == found


def test_what_a_function_hands_back_is_known_by_its_name() -> None:
    """`get_peft_model` and the like do not say in their names what comes out."""
    text = "from peft import get_peft_model\ntuned = get_peft_model(1)\ntuned.unload()"
    returns = {"peft.get_peft_model": ["peft.PeftModel", "peft.LoraModel"]}
    assert "peft.LoraModel.unload|peft.PeftModel.unload" in read(text, returns)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import trl\ntrl.SFTConfig(max_seq_length=1)", "trl.SFTConfig has no argument `max_seq_"),
        (
            "import peft\npeft.LoraConfig(lora_rank=8)",
            "peft.LoraConfig has no argument `lora_rank`",
        ),
        (
            "from transformers import BitsAndBytesConfig as C\nC(load_in_2bit=True)",
            "transformers.BitsAndBytesConfig has no argument `load_in_2bit`",
        ),
        (
            "import transformers as t\nt.AutoModelForCausalLM.from_pretrained('x', dtypo=1)",
            "transformers.AutoModelForCausalLM.from_pretrained has no argument `dtypo`",
        ),
        ("from trl import DataCollatorForCompletionOnlyLM", "trl has no DataCollatorForCompletion"),
        (
            "from transformers import Trainer\ndef f(t: Trainer):\n    t.fly()",
            "transformers.Trainer has no fly",
        ),
        ("import peft\npeft.nowhere.to.go", "peft has no nowhere"),
    ],
)
def test_what_is_gone_is_named(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument, also one that would go into `**kwargs`; a class, a method, a module."""
    (line,) = told(text, monkeypatch)
    library = said.split(".")[0].split()[0]
    assert line.startswith(f"{library} {importlib.metadata.version(library)}: {said}")
    assert line.endswith("(x.py)")


def test_a_library_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason."""
    monkeypatch.setattr(drift, "LIBRARIES", ("no_such_library",))
    (line,) = told("import no_such_library\nno_such_library.x", monkeypatch)
    assert "no_such_library cannot be imported (ModuleNotFoundError" in line


def test_arguments_that_go_through_kwargs() -> None:
    """Taken out by name, by a class that another is built on, or by the function they reach."""
    hands_on = tomllib.loads(drift.BY_HAND.read_text(encoding="utf-8"))["hands_on"]
    load = "transformers.AutoModelForCausalLM.from_pretrained"
    assert drift.accepts(load, "quantization_config", hands_on)
    assert drift.accepts("transformers.GPTNeoXConfig", "rotary_pct", hands_on)
    assert drift.accepts("transformers.LlamaForCausalLM.generate", "do_sample", hands_on)
    assert drift.accepts("openai.DefaultHttpxClient", "trust_env", hands_on)
    assert not drift.accepts("trl.SFTConfig", "no_cuda", hands_on)
    assert drift.accepts("torch.tensor", "dtype", hands_on)  # written in C: nothing can be told


def test_main_says_what_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and the lines; status 0 and the versions."""
    monkeypatch.setattr(drift, "differences", lambda: ["trl 9: something"])
    assert drift.main(["check"]) == 1
    assert capsys.readouterr().out == "trl 9: something\n"
    monkeypatch.setattr(drift, "differences", list)
    assert drift.main(["check"]) == 0
    assert "all as the course needs it" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        drift.main(["try", "oldest"])


def test_bounds_that_are_too_low_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages together ask for more than pyproject.toml does."""
    monkeypatch.setattr(drift, "requirements", lambda: ["a_b>=1.0", "c>=2", "torch>=2.8"])
    assert not drift.untrue_bounds(["a-b==1.0.0", "c==2", "torch==2.13.0"])
    (line,) = drift.untrue_bounds(["a-b==1.0.0", "c==2.1", "torch==2.13.0"])
    assert line == "c>=2: the lowest that fits the others is 2.1"


def test_environments_are_made_from_the_projects_own_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The pinned one from constraints.txt, the newest from the ranges; each with a torch."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(drift, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(drift.venv, "create", lambda *a, **k: None)
    monkeypatch.setattr(drift.bootstrap, "torch_index", lambda gpu: [])
    monkeypatch.setattr(drift.bootstrap, "install", lambda python, *what: asked.append(what))
    drift.install("pinned")
    drift.install("newest")
    pinned, newest = asked
    assert str(ROOT / "constraints.txt") in pinned
    assert "--upgrade" in newest
    assert drift.pinned("torch") in newest  # the index of CPU builds is out of reach here
    assert any(re.match(r"trl>=", line) for line in newest)
    index = ["--extra-index-url", "https://x"]
    monkeypatch.setattr(drift.bootstrap, "torch_index", lambda gpu: index)
    drift.install("newest")
    assert drift.pinned("torch") not in asked[-1]
    assert set(index) <= set(asked[-1])
