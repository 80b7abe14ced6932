"""Checks for the exercises: what is wrong, a hint more each time, never the answer.

`check("01.1", my_answer)` prints the verdict. Introduced in notebook 01.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from course_utils.catalog import unknown


class Wrong(Exception):
    """What is wrong with an answer, said to the learner."""


class Empty(Exception):
    """Nothing has been answered yet."""


@dataclass(frozen=True)
class _Exercise:
    test: Callable[..., None]
    hints: tuple[str, ...]


_exercises: dict[str, _Exercise] = {}
_attempts: Counter[str] = Counter()


def _exercise(name: str, *hints: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(test: Callable[..., None]) -> Callable[..., None]:
        _exercises[name] = _Exercise(test, hints)
        return test

    return register


def _call(function: object, *args: Any) -> Any:
    """Call the learner's function; an exception of theirs is a wrong answer."""
    if not callable(function):
        raise Wrong(f"This should be a function, and is {type(function).__name__}.")
    try:
        result = function(*args)
    except Exception as error:
        shown = ", ".join(repr(arg) if isinstance(arg, str) else "…" for arg in args)
        raise Wrong(f"Called with ({shown}) it raised {type(error).__name__}: {error}") from error
    if result is None or result is ...:
        raise Empty
    return result


@dataclass(frozen=True)
class Verdict:
    """What came of a check: solved, or what to say; `tried` tells a wrong answer from none."""

    solved: bool
    tried: bool
    message: str


def grade(name: str, *answer: Any) -> Verdict:
    """Check an exercise without printing.

    Args:
        name: the exercise's number, such as `"01.1"`.
        answer: what the exercise asks to be handed over.

    Raises:
        UnknownName: there is no such exercise.
    """
    if name not in _exercises:
        raise unknown("exercise", name, list(_exercises))
    try:
        if not answer or any(part is None or part is ... for part in answer):
            raise Empty
        _exercises[name].test(*answer)
    except Empty:
        return Verdict(False, False, "nothing to check yet. Replace the ..., then run both cells.")
    except Wrong as wrong:
        return Verdict(False, True, f"not yet. {wrong}")
    return Verdict(True, True, "solved.")


def check(name: str, *answer: Any) -> None:
    """Check an exercise and print what came of it, with one more hint at each wrong try.

    Args and errors are those of `grade`.
    """
    verdict = grade(name, *answer)
    print(f"Exercise {name}: {verdict.message}")
    if verdict.tried and not verdict.solved:
        _attempts[name] += 1
        for hint in _exercises[name].hints[: _attempts[name]]:
            print(f"  Hint: {hint}")


@_exercise(
    "01.1",
    "Temperature acts on the logits, before they become probabilities.",
    "A higher temperature brings the logits nearer to one another.",
    "For temperature 0, think of the limit: one token gets everything. Which one?",
)
def _temperature(function: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for size, temperature in itertools.product((3, 50), (1.0, 0.5, 2.0, 0.0)):
        logits = torch.randn(size, generator=generator)
        given = _call(function, logits.clone(), temperature)
        if not isinstance(given, torch.Tensor) or given.shape != logits.shape:
            raise Wrong(f"For {size} logits, a tensor of {size} probabilities is expected.")
        if not torch.isfinite(given).all():
            raise Wrong(f"At temperature {temperature:g} there are values that are not finite.")
        if (given < 0).any() or abs(given.sum().item() - 1) > 1e-4:
            raise Wrong(
                f"At temperature {temperature:g} the values sum to {given.sum().item():.3f}; "
                "probabilities are positive and sum to 1."
            )
        if temperature == 0:
            right = torch.zeros(size).scatter(0, logits.argmax(0, keepdim=True), 1.0)
        else:
            right = torch.softmax(logits / temperature, 0)
        if not torch.allclose(given.float(), right, atol=1e-4):
            flatter = given.max() < right.max()
            raise Wrong(
                f"At temperature {temperature:g} the likeliest token has {given.max().item():.3f}, "
                f"which is too {'little' if flatter else 'much'}."
            )


@_exercise(
    "01.2",
    "Print `ask.prompt(...)` with `repr` and compare it with yours, character by character.",
    "Each message is closed by <|im_end|> and a line break, the system's too.",
    "The model answers in the assistant's turn: somebody has to open it.",
)
def _chatml(function: Callable[[str, str], str]) -> None:
    cases = (("You are a poet.", "Describe rain."), ("Be brief.", "Is 7 prime?\nWhy?"))
    for system, question in cases:
        given = _call(function, system, question)
        if not isinstance(given, str):
            raise Wrong(f"A text is expected, and this is {type(given).__name__}.")
        for part, role in ((system, "system"), (question, "user")):
            if part not in given:
                raise Wrong(f"The {role}'s text {part!r} is not in the prompt.")
            if f"<|im_start|>{role}\n{part}" not in given:
                raise Wrong(f"The {role}'s message does not open as in the template.")
            if f"{part}<|im_end|>" not in given:
                raise Wrong(f"The {role}'s message does not close as in the template.")
        if "<|im_start|>assistant" not in given:
            raise Wrong("Nothing asks the assistant to speak.")
        right = "".join(
            f"<|im_start|>{role}\n{text}<|im_end|>\n"
            for role, text in (("system", system), ("user", question))
        )
        if given != right + "<|im_start|>assistant\n":
            raise Wrong("Nearly: some line breaks or blanks differ from the template.")


_OPPOSITES = {
    "fast": "slow",
    "cold": "hot",
    "full": "empty",
    "day": "night",
    "young": "old",
    "open": "closed",
    "up": "down",
    "left": "right",
    "rich": "poor",
    "early": "late",
}
_OPPOSITES_NEEDED = 5


@_exercise(
    "01.3",
    "A raw prompt is a text to be continued: after what text would only the opposite fit?",
    "Show some pairs of opposites first, all in the same form, and end in mid-pair.",
    "End the prompt right where the answer's word begins, with no blank after it.",
)
def _opposites(function: Callable[[str], str], ask: Any) -> None:
    prompts = []
    for word, opposite in _OPPOSITES.items():
        prompt = _call(function, word)
        if not isinstance(prompt, str):
            raise Wrong(f"A text is expected, and this is {type(prompt).__name__}.")
        if word not in prompt:
            raise Wrong(f"The prompt for {word!r} does not hold the word.")
        if opposite in prompt.replace(word, "").lower().split():
            raise Wrong(
                f"The prompt for {word!r} gives its opposite away. These words are the test: "
                "use other pairs as examples."
            )
        prompts.append(prompt)
    replies = ask(prompts, template=False, max_new_tokens=6)
    first = [reply.strip().split("\n")[0].strip(" .,!\"'*").lower() for reply in replies]
    right = sum(a == b for a, b in zip(first, _OPPOSITES.values(), strict=True))
    if right < _OPPOSITES_NEEDED:
        shown = ", ".join(f"{a} → {b!r}" for a, b in zip(_OPPOSITES, first, strict=True))
        raise Wrong(
            f"{right} of {len(_OPPOSITES)} are right, and {_OPPOSITES_NEEDED} are needed; the "
            f"reply's first line has to be the word alone. It was: {shown}."
        )
