"""Quizzes: the notebook asks what the file answers, and no answer but the right one passes."""

from __future__ import annotations

import re

import pytest

from course_utils.errors import UnknownName
from course_utils.exercises import _quizzes as quizzes
from course_utils.exercises import quiz
from tools import notebooks

_ASKED = re.compile(r"^# \*\*(\w)\.\*\* ", re.M)
_OPTION = re.compile(r"^# - \*\*([A-D])\*\* (.+)", re.M)


def sources() -> dict[str, str]:
    """The number and source of each notebook with a quiz: all but the first and appendices."""
    lessons = [path for path in notebooks.sources()[1:] if not notebooks.is_appendix(path)]
    return {path.stem.split("_")[0]: path.read_text() for path in lessons}


def asked(text: str) -> dict[str, dict[str, str]]:
    """The questions under a source's heading of exercises: letter to option."""
    start = text.index("# **Quiz.**")
    part = text[start : text.index('quiz("', start)]
    places = [*_ASKED.finditer(part)]
    ends = [place.start() for place in places[1:]] + [len(part)]
    return {
        place[1]: dict(_OPTION.findall(part[place.start() : end]))
        for place, end in zip(places, ends, strict=True)
    }


@pytest.mark.parametrize("notebook", sources())
def test_the_notebook_asks_what_the_file_answers(notebook: str) -> None:
    """The same questions and letters, and the cell has a place for each."""
    text = sources()[notebook]
    known = quizzes.read(notebook)
    assert 2 <= len(known) <= 4
    assert {name: set(options) for name, options in asked(text).items()} == {
        name: set(question) - {"right"} for name, question in known.items()
    }
    places = ", ".join(f'{name}="..."' for name in known)
    assert f'quiz("{notebook}", {places})' in text


@pytest.mark.parametrize("notebook", sources())
def test_only_the_right_letter_is_right(notebook: str) -> None:
    """Every letter has something said to it; a wrong one's does not name the right one."""
    for name, question in quizzes.read(notebook).items():
        letters = set(question) - {"right"}
        assert question["right"] in letters
        assert len(letters) >= 3
        for letter in letters:
            for typed in (letter, letter.lower(), f" {letter} "):
                right, said = quizzes.grade(notebook, {name: typed})[name]
                assert right == (letter == question["right"])
                assert len(said) > 25
                assert question[letter] in said
            if letter != question["right"]:
                assert not re.search(rf"\b{question['right']}\b(?! [a-z])", question[letter])
        for typed in ("...", "", None, ..., "E", "AB", 3, f"{question['right']}."):
            assert not quizzes.grade(notebook, {name: typed})[name][0]


def test_the_right_letters_are_spread() -> None:
    """Nobody passes by always taking the same."""
    letters = [q["right"] for number in quizzes.notebooks() for q in quizzes.read(number).values()]
    assert len(letters) >= 2 * len(sources())
    assert max(map(letters.count, set(letters))) <= 0.45 * len(letters)


def test_the_right_option_is_not_the_longest_as_a_rule() -> None:
    """Nor by taking the longest."""
    longest = total = 0
    for notebook, text in sources().items():
        options = {
            name: {letter: len(option) for letter, option in question.items()}
            for name, question in whole_options(text).items()
        }
        for name, question in quizzes.read(notebook).items():
            sizes = options[name]
            longest += sizes[question["right"]] == max(sizes.values())
            total += 1
    assert longest <= 0.5 * total


def whole_options(text: str) -> dict[str, dict[str, str]]:
    """As `asked`, with options that run over several lines."""
    return asked(re.sub(r"\n#   (?=\S)", " ", text))


def test_unknown_names_list_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    """A quiz that is not there, a question that is not there; nothing answered says so."""
    with pytest.raises(UnknownName, match=r"01.*08"):
        quiz("99", a="A")
    with pytest.raises(UnknownName, match="a"):
        quiz("01", z="A")
    quiz("01", a="...")
    assert "no answer yet: A, B" in capsys.readouterr().out
