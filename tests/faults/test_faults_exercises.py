"""Answers of every kind, and the course's own data damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from course_utils.errors import BadValue, UnknownName
from course_utils.exercises import _check as exercises
from course_utils.exercises import _quizzes as quizzes
from course_utils.models._running import Runner


def wrong(*_: object) -> object:
    return "nope"


def raising(*_: object) -> object:
    raise KeyError("mine")


class Odd:
    """Something that answers every question with an error."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparing")

    __hash__ = None

    def __call__(self, *_: object) -> object:
        return self


ANSWERS = {
    "a text": "nope",
    "a number": 3,
    "NaN": float("nan"),
    "a class": int,
    "a function": wrong,
    "one that raises": raising,
    "an odd object": Odd(),
    "a list": [1, None],
}


@pytest.mark.parametrize("name", exercises.known())
def test_any_answer_has_a_verdict(name: str, capsys: pytest.CaptureFixture) -> None:
    """Whatever is handed over: a sentence, no traceback, and nothing solved."""
    for what, answer in ANSWERS.items():
        exercises.check(name, *[answer] * wanted(name))
        said = capsys.readouterr().out
        assert said.startswith(f"Exercise {name}: "), what
        assert "solved" not in said, what


def wanted(name: str) -> int:
    """How many answers an exercise takes."""
    return exercises._exercises[name].test.__code__.co_argcount


@pytest.mark.parametrize("name", exercises.known())
def test_too_many_and_too_few_answers(name: str, capsys: pytest.CaptureFixture) -> None:
    """The number is said; it costs no hint."""
    takes = wanted(name)
    for count in {takes + 1, takes + 2, takes - 1} - {0}:
        exercises.check(name, *[wrong] * count)
        said = capsys.readouterr().out
        assert f"was given {count}" in said
        assert f"takes {'one answer' if takes == 1 else f'{takes} answers'}" in said
        assert "Hint" not in said
    exercises.check(name)
    assert "nothing to check yet" in capsys.readouterr().out


@pytest.mark.parametrize("letter", ["Z", "AB", "1", 1, 1.5, [], {}, b"A", "a" * 100_000, "\ud800"])
def test_letters_that_no_question_has(letter: object, capsys: pytest.CaptureFixture) -> None:
    """Named, shortened, with those that there are."""
    quizzes.quiz("01", a=letter)
    said = capsys.readouterr().out
    assert "is none of A, B" in said
    assert len(said) < 300


@pytest.mark.parametrize("name", ["nope", "", "01.99", "1", None, [], 1.1, "x" * 100_000])
@pytest.mark.parametrize("function", [exercises.check, exercises.done, quizzes.quiz])
def test_names_that_are_none(function: Callable[..., object], name: object) -> None:
    """Refused with what there is."""
    with pytest.raises(UnknownName, match=r"Known|Did you mean") as caught:
        function(name)
    assert len(str(caught.value)) < 1000


# ---- a model that is asked


@pytest.fixture(scope="module")
def ask() -> Runner:
    from course_utils.models._loading import load_model, load_tokenizer

    name = "course/pythia-3m"  # which takes 256 tokens
    return Runner(load_model(name, quiet=True), load_tokenizer(name), template=False)


def test_a_prompt_longer_than_the_context(ask: Runner) -> None:
    """How long it is, how long it may be, and what to do."""
    with pytest.raises(BadValue, match=r"prompt has [\d,]+ tokens, and course/pythia-3m takes 256"):
        ask("one two three " * 300, max_new_tokens=4)
    with pytest.raises(BadValue, match=r"prompts\[1\] has .* Shorten"):
        ask(["short", "one two three " * 300])


def test_a_reply_longer_than_the_context(ask: Runner) -> None:
    """What is asked for is refused; the usual length is cut to what there is room for."""
    with pytest.raises(BadValue, match=r"max_new_tokens=10,000 is too many: \d+ are possible"):
        ask("One", max_new_tokens=10_000)
    prompt = "a b c d " * 55
    room = 256 - len(ask.tokenizer(prompt)["input_ids"])
    assert 0 < room < 128
    assert ask(prompt).tokens <= room


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -1},
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"temperature": "hot"},
        {"temperature": True},
        {"max_new_tokens": 10**18},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"num_beams": 10**9},
        {"top_p": float("nan")},
        {"top_p": 2},
        {"top_k": -1},
        {"do_sample": "no"},
        {"max_token": 5},
        {"eos_token_id": "nope"},
        {"length_penalty": "nope", "num_beams": 2},
    ],
    ids=str,
)
def test_generation_options(ask: Runner, options: dict) -> None:
    """Refused by name, with what is possible."""
    with pytest.raises(BadValue, match=next(iter(options))):
        ask("One", **options)


def test_a_whole_number_is_a_temperature(ask: Runner) -> None:
    """transformers alone takes 1.0 and not 1."""
    assert ask("One", temperature=1, seed=0, max_new_tokens=3) == ask(
        "One", temperature=1.0, seed=0, max_new_tokens=3
    )


# ---- the course's own files damaged

# A file, and what reads it.
FILES = {
    "course_utils/models/catalog.toml": "from course_utils.models import catalog; catalog()",
    "course_utils/models/configs/Qwen/Qwen2.5-7B.json": "from course_utils import models\n"
    "models.known_model('Qwen/Qwen2.5-7B').config()",
    "course_utils/exercises/quizzes/01.toml": "from course_utils.exercises import quiz; quiz('01')",
    "course_utils/memory/models.json": "from course_utils.memory._setup import architectures; "
    "architectures()",
    "course_utils/memory/published.csv": "from course_utils.memory.grid import published; "
    "published('opt-350m-8bit')",
    "course_utils/data/phrases.toml": "from course_utils.data._facts import domains; domains()",
    "course_utils/scoring/benchmarks.toml": "from course_utils.scoring import benchmarks_table; "
    "benchmarks_table()",
    "datasets/countries/countries.csv": "from course_utils.data._facts import domains; domains()",
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00" * 50),
}


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the course, to be damaged."""
    folder = tmp_path_factory.mktemp("course")
    leave = shutil.ignore_patterns("__pycache__", "own_models")
    for part in ("course_utils", "datasets"):
        shutil.copytree(ROOT / part, folder / part, ignore=leave)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "file",
    [
        # These import large libraries first.
        pytest.param(file, marks=pytest.mark.slow) if "config" in file or "bench" in file else file
        for file in FILES
    ],
)
def test_a_damaged_file_of_the_course(file: str, damage: str, course: Path) -> None:
    """It is named, with the way to get it back."""
    path = course / file
    whole = path.read_bytes()
    try:
        DAMAGES[damage](path)
        # The last line of a traceback is what a notebook shows below the cell.
        done = subprocess.run(
            [sys.executable, "-c", FILES[file]],
            cwd=course,
            env={**os.environ, "PYTHONPATH": str(course), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        path.write_bytes(whole)
    last = done.stderr.strip().splitlines()[-1] if done.stderr else ""
    assert done.returncode == 1, "accepted"
    if "quizzes" in file and damage == "missing":  # then there is no such quiz
        assert "UnknownName: Unknown quiz" in last
        return
    assert "DamagedFile" in last, last
    assert str(path) in last
    assert "git checkout" in last
