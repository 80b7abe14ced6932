"""API drift: the list is what the sources use, the libraries have it, and what is gone is named."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from conftest import ROOT, load_tool

drift = load_tool("drift")


@pytest.fixture(scope="module")
def settings() -> dict:
    """What the list says by hand."""
    return drift.read_list()["by_hand"]


def read(text: str, returns: dict[str, list[str]] | None = None) -> dict[str, set[str]]:
    """What a source uses: dotted names, or `classes: method`, to arguments."""
    found: dict = {}
    drift.Reader("x.py", returns or {}, found).read(text)
    return {
        f"{'|'.join(sorted(classes))}: {name}" if classes else name: use.arguments
        for (classes, name), use in found.items()
    }


def test_the_installed_libraries_have_what_the_course_calls() -> None:
    """By name; `make drift` says the same for the lowest and the newest versions."""
    assert not drift.differences()


def test_the_list_is_what_the_sources_say() -> None:
    """After a change in what is called: `make signatures`."""
    assert not drift.stale()


def test_the_list_has_what_matters() -> None:
    """Notebooks, helpers and programs inside texts have been read."""
    listed = drift.read_list()["collected"]
    assert {"max_length", "bf16", "max_steps", "eval_strategy"} <= set(listed["trl.SFTConfig"])
    assert {"processing_class", "peft_config"} <= set(listed["trl.SFTTrainer"])
    assert {"r", "lora_alpha", "target_modules"} <= set(listed["peft.LoraConfig"])
    assert {"quantization_config", "dtype"} <= set(
        listed["transformers.AutoModelForCausalLM.from_pretrained"]
    )
    assert "resume_from_checkpoint" in listed["trl.SFTTrainer.train"]
    assert "peft.prepare_model_for_kbit_training" in listed
    assert "bitsandbytes.nn.Linear4bit" in listed
    assert any(name.startswith("lm_eval.") for name in listed)
    assert any(name.startswith("openai.") for name in listed)


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
            {"trl.SFTTrainer": set(), "trl.SFTTrainer: train": {"x"}},
        ),
        (
            "from trl import SFTTrainer\ndef f():\n    t = SFTTrainer()\n    return t\nf().go()",
            {"trl.SFTTrainer": set(), "trl.SFTTrainer: go": set()},
        ),
        (
            "from trl import SFTConfig\ndef set_up(a, **rest):\n    return SFTConfig(**rest)\n"
            "set_up(1, a=2, b=3)",
            {"trl.SFTConfig": {"b"}},
        ),
        (
            "from transformers import Trainer\ndef look(trainer: Trainer):\n    trainer.see(by=1)",
            {"transformers.Trainer": set(), "transformers.Trainer: see": {"by"}},
        ),
        (
            "script = f'''\nfrom trl import SFTConfig\nSFTConfig(seed={1})\n'''",
            {"trl.SFTConfig": {"seed"}},
        ),
        ("from pathlib import Path\nPath('x').open(mode='r')", {}),
    ],
    ids=lambda value: value.splitlines()[-1][:30] if isinstance(value, str) else "",
)
def test_reading(text: str, found: dict[str, set[str]]) -> None:
    """Imports, aliases, options in dictionaries, methods, functions between, texts in a source."""
    assert read(text) == found


def test_what_a_function_hands_back_is_known_by_its_name() -> None:
    """`get_peft_model` and the like do not say in their names what comes out."""
    text = "from peft import get_peft_model\ntuned = get_peft_model(1)\ntuned.unload()"
    returns = {"peft.get_peft_model": ["peft.PeftModel", "peft.LoraModel"]}
    assert "peft.LoraModel|peft.PeftModel: unload" in read(text, returns)


def test_an_argument_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library with its version, the callable, the argument and where it is used."""
    content = drift.read_list()
    content["collected"] = {"trl.SFTConfig": ["max_length", "max_seq_length"]}
    monkeypatch.setattr(drift, "read_list", lambda: content)
    version = importlib.metadata.version("trl")
    (line,) = drift.differences()
    assert line.startswith(f"trl {version}: trl.SFTConfig has no argument `max_seq_length` (")
    assert "notebooks/solutions/" in line or "benchmarks/" in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trl.DataCollatorForCompletionOnlyLM", "trl has no DataCollatorForCompletionOnlyLM"),
        ("transformers.Trainer.fly", "transformers.Trainer has no fly"),
        ("peft.nowhere.to.go", "peft has no nowhere"),
        ("no_such_library.x", "no_such_library cannot be imported"),
    ],
)
def test_a_name_that_is_gone_is_named(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class, a method, a module, a library."""
    content = drift.read_list()
    content["collected"] = {name: []}
    monkeypatch.setattr(drift, "read_list", lambda: content)
    (line,) = drift.differences()
    assert said in line


def test_arguments_that_go_through_kwargs(settings: dict) -> None:
    """Taken out by name, handed on to another function, or not to be told."""
    load = "transformers.AutoModelForCausalLM.from_pretrained"
    assert drift.accepts(load, "quantization_config", settings) is True
    assert drift.accepts("transformers.GPTNeoXConfig", "rotary_pct", settings) is True
    assert drift.accepts("transformers.LlamaForCausalLM.generate", "do_sample", settings) is True
    assert drift.accepts("trl.SFTConfig", "no_cuda", settings) is False
    assert drift.accepts("torch.tensor", "dtype", settings) is None  # written in C


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
