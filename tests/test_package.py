"""The package as others install it: what an import costs, what a name list says, the wheel."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ["course_utils"] + [
    f"course_utils.{path.parent.name}" for path in (ROOT / "course_utils").glob("*/__init__.pyi")
]
OURS = ("benchmarks", "course_utils", "tests", "tools")
# What takes seconds to import.
HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "trl", "peft", "lm_eval")
# A module, and those of the heavy ones that it may import.
LIGHT = {
    **dict.fromkeys(
        (
            *PACKAGES,
            *("course_utils.masks", "course_utils.doctor", "course_utils.results"),
            *("course_utils.widgets._rating", "course_utils.widgets._playground"),
            *("course_utils.widgets._translator", "course_utils.widgets._memory_calculator"),
            *("course_utils.models._catalog", "course_utils.data._load"),
        ),
        (),
    ),
    "course_utils.display": ("matplotlib", "pandas"),
}


@pytest.mark.parametrize("module", LIGHT)
def test_an_import_is_light(module: str) -> None:
    """What takes seconds is imported where it is used."""
    program = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert imported & set(HEAVY) <= set(LIGHT[module])


@pytest.mark.parametrize("package", PACKAGES)
def test_each_name_of_a_stub_is_there(package: str) -> None:
    """What editors and `dir()` are told of can be imported, under that name, and nothing else."""
    module = importlib.import_module(package)
    assert module.__all__
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@pytest.mark.parametrize(
    "source", [*(ROOT / "notebooks" / "solutions").glob("*.py")], ids=lambda path: path.stem
)
def test_a_notebook_imports_what_is_public(source: Path) -> None:
    """From packages, not from private modules or folders that an installation lacks."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(name.name.split(".")[0] in OURS for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            assert node.module.split(".")[0] == "course_utils", node.module
            assert "._" not in node.module, node.module
            module = importlib.import_module(node.module)
            lacks = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not lacks, f"line {node.lineno}: {node.module} has no {lacks}"


def installed_with(requirements: list[str]) -> set[str]:
    """The distributions that come with some requirements, as this environment has them."""
    found, waiting, seen = set(), [Requirement(line) for line in requirements], set()
    while waiting:
        requirement = waiting.pop()
        if (requirement.name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((requirement.name, frozenset(requirement.extras)))
        try:
            listed = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:  # another platform's
            continue
        found.add(canonicalize_name(requirement.name))
        for line in listed:
            inner = Requirement(line)
            extras = {"", *requirement.extras}
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(inner)
    return found


def test_the_core_is_small() -> None:
    """Without the extras, less than half of what the notebooks take."""
    core = installed_with(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    whole = installed_with(
        [
            *PROJECT["dependencies"],
            *(
                line
                for name in ("judge", "benchmarks", "serving", "widgets")
                for line in extras[name]
            ),
        ]
    )
    assert len(core) <= 55
    assert len(core) < 0.5 * len(whole)


# Runs with the wheel and the core alone.
PROGRAM = """
import tempfile
import course_utils
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from course_utils import load_data, load_model, load_tokenizer, masks, preflight
from course_utils.data import pig_latin
from course_utils.memory import Setup, predict
from course_utils.scoring import exact_match

print(course_utils.__file__)
assert pig_latin("Hello") == "Ellohay"
rows = load_data("pig_latin")["test"]
assert exact_match([row["pig_latin"] for row in rows], [row["pig_latin"] for row in rows]) == 1
setup = Setup("course/pythia-3m", trainer="trainer", seq_len=32)
assert predict(setup, "t4").peak_allocated_mb > 0
model, tokenizer = load_model("course/pythia-3m"), load_tokenizer("course/pythia-3m")
texts = [{"prompt": row["sentence"], "completion": row["pig_latin"]} for row in rows]
with tempfile.TemporaryDirectory() as folder:
    args = SFTConfig(folder, report_to="none", use_cpu=True, bf16=False, learning_rate=1e-4)
    trainer = SFTTrainer(
        model, args=args, train_dataset=Dataset.from_list(texts), processing_class=tokenizer
    )
    report = preflight(trainer)
    assert {row.name for row in report.rows} > {"EOS supervised", "plain loss"}, report
    batch = next(iter(trainer.get_train_dataloader()))
    assert "trained" in str(masks.show(batch, tokenizer))
"""


def test_the_wheel_works_alone(tmp_path: Path) -> None:
    """In an environment of its own, which borrows this one's packages, but for those of extras."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "own", with_pip=True)
    python = tmp_path / "own" / Path(sys.executable).relative_to(sys.prefix)
    site = next((tmp_path / "own").rglob("site-packages"))
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, cwd=tmp_path
    )
    here = Path(sysconfig.get_path("purelib"))
    for name in installed_with(PROJECT["dependencies"]):
        for file in importlib.metadata.files(name) or []:
            if file.parts[0] != ".." and not (site / file.parts[0]).exists():
                (site / file.parts[0]).symlink_to(here / file.parts[0])
    assert not (site / "matplotlib").exists()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(done.stdout.splitlines()[0]).is_relative_to(site)
    told = subprocess.run(
        [python.parent / "course-utils", "progress", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "which exercises are done" in told.stdout, told.stderr
