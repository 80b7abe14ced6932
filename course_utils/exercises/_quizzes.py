"""Short quizzes: the questions are in a notebook's text, an answer is a letter in a cell.

So a quiz works wherever cells run, and can be read where they do not. The feedback for each letter
is in `NN.toml` in this folder. Introduced in notebook 01, as `exercises.quiz`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from course_utils._core.checks import a, course_file, one_of
from course_utils._core.printable import visible
from course_utils.errors import shown
from course_utils.exercises import _progress as progress

FOLDER = Path(__file__).parent / "quizzes"


def notebooks() -> list[str]:
    """List the numbers of the notebooks that have a quiz."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(notebook: str) -> dict[str, dict[str, str]]:
    """Read a notebook's quiz: for each question, the `right` letter and the feedback per letter.

    Raises:
        UnknownName: the notebook has no quiz.
    """
    file = FOLDER / f"{one_of('quiz', notebook, notebooks())}.toml"
    with course_file(file):
        questions = tomllib.loads(file.read_text(encoding="utf-8"))
        if not questions or any(
            len(said) < 3 or said["right"] not in said for said in questions.values()
        ):
            raise ValueError("no questions, or one without its right answer")
    return questions


def names() -> list[str]:
    """List all questions by their names in `progress`, such as `"quiz 01.a"`."""
    return [f"quiz {notebook}.{name}" for notebook in notebooks() for name in read(notebook)]


def grade(notebook: str, answers: dict[str, str]) -> dict[str, tuple[bool, str]]:
    """Grade answers: for each, whether it is right, and the feedback.

    Args:
        notebook: the notebook's number, such as `"03.1"`.
        answers: a letter for each question, in upper or lower case; `"..."` for no answer yet.

    Raises:
        UnknownName: there is no such quiz, or no such question in it.
        ValueError: `answers` is not a dictionary.
    """
    questions = read(notebook)
    a("answers", answers, dict, 'a dictionary of questions and letters, such as {"a": "B"}')
    found = {}
    for name, answer in answers.items():
        question = questions[one_of("question", name, questions)]
        right = question["right"]
        letters = sorted(set(question) - {"right"})
        letter = answer.strip().upper() if isinstance(answer, str) else answer
        if not isinstance(letter, str | None | type(...)):
            said = f"{shown(answer)} is none of {', '.join(letters)}."
        elif letter in ("", "...", "…", None, ...):
            said = f"no answer yet: {', '.join(letters[:-1])} or {letters[-1]}?"
        elif letter not in letters:
            said = f"{shown(answer)} is none of {', '.join(letters)}."
        elif letter == right:
            said = f"{letter} is right. {question[letter]}"
        else:
            said = f"not {letter}. {question[letter]}"
        found[name] = (letter == right, said)
    return found


def quiz(notebook: str, **answers: str) -> None:
    """Print feedback on the answers to a notebook's quiz.

    Arguments and errors are those of `grade`. Correct answers count as done in `progress`.
    """
    graded = grade(notebook, answers)
    for name, (_, said) in graded.items():
        print(visible(f"{name}: {said}"))
    progress.add(f"quiz {notebook}.{name}" for name, (right, _) in graded.items() if right)
