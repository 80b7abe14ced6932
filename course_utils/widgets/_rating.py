"""Blind rating of answers side by side. Introduced in notebook 08."""

from __future__ import annotations

import html
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets

from course_utils._core import checks
from course_utils.widgets._base import WithFallback, as_html

if TYPE_CHECKING:
    from course_utils.scoring import Vote, Votes


def rating(
    pairs: Sequence[tuple[str, Mapping[str, str]]],
    votes: Votes,
    *,
    voter: str = "me",
    seed: int | None = None,
) -> WithFallback:
    """Rate answers side by side without knowing which system wrote them; the results come last.

    Each click is stored at once. Run again with the same `votes` to continue where you stopped. A
    skipped pair comes again in the next run.

    Args:
        pairs: for each question, the question and the two systems' answers, by the system's name:
            `[("What is …?", {"base": "It …", "tuned": "That …"}), …]`.
        votes: where the votes are stored.
        voter: who votes.
        seed: the seed for which answer is on the left; None for different sides each time.

    Raises:
        ValueError: there are no pairs, a question does not have two answers, a pair occurs twice,
            or an argument is invalid.
    """
    from course_utils.scoring import Vote, Votes, answers_fingerprint, win_rates

    pairs = checks.items("pairs", pairs, "pairs")
    for pair in pairs:
        good = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], Mapping)
        if not (good and all(isinstance(part, str) for part in (pair[0], *pair[1].values()))):
            possible = 'a question and its answers by system: ("Why?", {"a": "…", "b": "…"})'
            raise checks.refuse("each of pairs", pair, possible)
    checks.a("votes", votes, Votes, "Votes, such as Votes('votes.jsonl')")
    checks.text("voter", voter, empty=False)
    if seed is not None:
        checks.whole("seed", seed)
    draw = random.Random(seed)
    blanks: list[Vote] = []  # the pairs to vote on; their winners are placeholders
    texts: list[tuple[str, str]] = []
    for question, answers in pairs:
        if len(answers) != 2:
            raise ValueError(
                f"There are {len(answers)} answers to {question!r}; it takes those of two systems."
            )
        left, right = draw.sample(sorted(answers), 2)
        texts.append((answers[left], answers[right]))
        answer = answers_fingerprint(left, answers[left], right, answers[right])
        blanks.append(Vote(question, left, right, "tie", voter, answer))
    keys = [blank.key for blank in blanks]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(
            f"There are {len(keys)} pairs, {len(set(keys))} of them different; it takes one pair "
            "at least, and each once."
        )
    given = [keys.index(vote.key) for vote in votes if vote.key in keys]
    waiting = [number for number in range(len(keys)) if number not in given]

    def button(label: str) -> widgets.Button:
        return widgets.Button(description=label)

    progress, asked, left_answer, right_answer, result = (widgets.HTML() for _ in range(5))
    for side in (left_answer, right_answer):
        side.layout = widgets.Layout(width="49%")
    labels = {"left": "Left is better", "tie": "Equally good", "right": "Right is better"}
    choices = {winner: button(label) for winner, label in labels.items()}
    skip, undo = button("Skip"), button("Undo last")

    def as_text(text: str) -> str:
        return f'<div style="white-space:pre-wrap;line-height:1.4">{html.escape(text)}</div>'

    def show(trouble: str = "") -> None:
        for each in (*choices.values(), skip):
            each.disabled = not waiting
        # Not at the end: once the names are known, the rating is no longer blind.
        undo.disabled = not (waiting and given)
        result.value = f"<p>That does not work: {html.escape(trouble)}</p>" if trouble else ""
        if waiting:
            left_text, right_text = texts[waiting[0]]
            progress.value = f"{len(keys) - len(waiting) + 1} of {len(keys)}"
            asked.value = as_text(blanks[waiting[0]].question)
            left_answer.value = f"<b>Left</b>{as_text(left_text)}"
            right_answer.value = f"<b>Right</b>{as_text(right_text)}"
            return
        asked.value = left_answer.value = right_answer.value = ""
        progress.value = f"Done: {len(given)} of {len(keys)} judged."
        if given:
            table = win_rates([vote for vote in votes if vote.key in keys])
            result.value = (
                f"{as_html(table)}"
                "<p>A tie is half a win; low and high are the ends of a 95% interval.</p>"
            )

    def attempt(action: Callable[[], object]) -> None:
        if not waiting:  # the second half of a double click
            return
        try:
            action()
        except (OSError, ValueError) as error:
            show(str(error))
        else:
            show()

    def choose(winner: str) -> None:
        blank, (left_text, right_text) = blanks[waiting[0]], texts[waiting[0]]
        names = (blank.question, blank.left, blank.right)
        votes.add(*names, winner, voter, left_text=left_text, right_text=right_text)
        given.append(waiting.pop(0))

    def take_back() -> None:
        votes.withdraw(blanks[given[-1]])
        waiting.insert(0, given.pop())

    for winner, each in choices.items():
        each.on_click(lambda _, winner=winner: attempt(lambda: choose(winner)))
    skip.on_click(lambda _: attempt(lambda: waiting.pop(0)))
    undo.on_click(lambda _: attempt(take_back))
    show()
    box = WithFallback(
        [
            progress,
            asked,
            widgets.HBox([left_answer, right_answer]),
            widgets.HBox([*choices.values(), skip, undo]),
            result,
        ],
        "Widgets are not shown here. `votes.add(question, left, right, winner)` stores a vote, and "
        "`win_rates(votes)` counts them.",
    )
    box.controls = {
        "left_better": choices["left"],
        "equal": choices["tie"],
        "right_better": choices["right"],
        "skip": skip,
        "undo": undo,
        "progress": progress,
        "question": asked,
        "left": left_answer,
        "right": right_answer,
        "result": result,
    }
    return box
