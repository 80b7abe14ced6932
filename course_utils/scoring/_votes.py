"""Votes on pairs of answers, stored in a file.

A vote says which of two answers to a question, shown left and right, is better. People vote with
`widgets.rating`, a model with `Judge`. Introduced in notebook 08.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils._core import checks
from course_utils.errors import BadValue
from course_utils.results import appending, numbered_rows

if TYPE_CHECKING:
    import pandas as pd

_WINNERS = ("left", "right", "tie")
_WITHDRAWN = "withdrawn"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Vote:
    """One voter's verdict on two answers to a question.

    Attributes:
        question: what was asked.
        left, right: the names of the systems whose answers were shown left and right.
        winner: "left", "right" or "tie".
        voter: who voted: a person or a judge.
        answers: `answers_fingerprint` of the two answers, which tells votes on older answers from
            votes on the present ones; "" if the answers are unknown.
        time: the time of the vote in UTC, as ISO 8601.

    Raises:
        ValueError: an empty name or question, a system against itself, or an unknown winner.
    """

    question: str
    left: str
    right: str
    winner: str
    voter: str = "me"
    answers: str = ""
    time: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            checks.text(f"{part.name} of a vote", value, empty=part.name == "answers")
        if self.left == self.right:
            sides = checks.shown(self.left)
            raise BadValue(f"Both sides are {sides}; a vote is on two systems.")
        if self.winner not in _WINNERS:
            raise BadValue(
                f"The winner is {checks.shown(self.winner)}; {', '.join(_WINNERS)} are possible."
            )

    @property
    def preferred(self) -> str:
        """The name of the better system, or "tie"."""
        return {"left": self.left, "right": self.right, "tie": "tie"}[self.winner]

    @property
    def pair(self) -> tuple[str, str]:
        """The two systems in alphabetical order, whichever was shown left."""
        return min(self.left, self.right), max(self.left, self.right)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What identifies a vote: voter, question, the two systems, their answers."""
        return self.voter, self.question, *self.pair, self.answers


def answers_fingerprint(left: str, left_text: str, right: str, right_text: str) -> str:
    """Compute 16 hexadecimal digits that identify two systems' answers, whichever was shown left.

    Args:
        left, right: the systems' names.
        left_text, right_text: their answers.
    """
    for name, given in (("left", left), ("right", right)):
        checks.text(name, given)
    for name, given in (("left_text", left_text), ("right_text", right_text)):
        checks.text(name, given)
    both = json.dumps(sorted([[left, left_text], [right, right_text]]))
    return hashlib.sha256(both.encode()).hexdigest()[:16]


class Votes:
    """Votes in a JSON Lines file, each written to disk as soon as it is cast.

    The file is append-only: a withdrawn vote stays in it, followed by a line that withdraws it. If
    the program is killed, at most the vote being written is lost. Several programs may write to the
    same file. A row that is not a vote is left in place, with a warning. Iterating yields the votes
    that were not withdrawn, in the order in which they were cast.

    Args:
        path: the file, which is created with the first vote. `~` is the home folder.

    Raises:
        ValueError: on first reading a file that contains rows, but no votes.
        NotRows, CannotWrite, NotEnoughDisk: see `results.whole_rows` and `results.append_row`.
    """

    def __init__(self, path: str | Path):
        self.path = checks.path("path", path).absolute()

    def __repr__(self) -> str:
        return f"Votes({str(self.path)!r})"

    def __iter__(self) -> Iterator[Vote]:
        return iter(self._standing().values())

    def __len__(self) -> int:
        return len(self._standing())

    def _standing(self) -> dict[tuple, Vote]:
        votes: dict[tuple, Vote] = {}
        rows = numbered_rows(self.path)
        strange = []
        for number, row in rows:
            withdrawn = row.get("winner") == _WITHDRAWN
            try:
                vote = Vote(**({**row, "winner": "tie"} if withdrawn else row))
            except (TypeError, ValueError) as error:
                strange.append(f"Line {number} of {self.path} is no vote: {error}")
                continue
            votes.pop(vote.key, None)
            if not withdrawn:
                votes[vote.key] = vote
        if strange and len(strange) == len(rows):
            raise ValueError(strange[0])
        for told in strange:
            warnings.warn(f"{told} It was left where it is.", stacklevel=3)
        return votes

    def by(self, voter: str) -> list[Vote]:
        """Return the votes of one voter.

        Raises:
            BadValue: not a string.
        """
        checks.text("voter", voter)
        return [vote for vote in self if vote.voter == voter]

    def frame(self) -> pd.DataFrame:
        """Return all votes as a table, one per row."""
        import pandas as pd

        return pd.DataFrame([asdict(vote) for vote in self], columns=[f.name for f in fields(Vote)])

    def add(
        self,
        question: str,
        left: str,
        right: str,
        winner: str,
        voter: str = "me",
        *,
        left_text: str | None = None,
        right_text: str | None = None,
    ) -> Vote:
        """Store one vote.

        Args:
            question: what was asked.
            left, right: the names of the two systems.
            winner: "left", "right" or "tie".
            voter: who votes.
            left_text, right_text: the two answers, of which a fingerprint is stored; pass both or
                neither.

        Raises:
            ValueError: not a valid vote (see `Vote`), only one of the two answers, or this voter
                has already voted on this pair.
        """
        vote = Vote(
            question, left, right, winner, voter, _answers(left, left_text, right, right_text)
        )
        with appending(self.path) as append:
            if vote.key in self._standing():
                raise ValueError(
                    f"{voter} has voted on {left} against {right} for {question!r} already; "
                    "`withdraw` takes that vote back."
                )
            append(asdict(vote))
        return vote

    def voted(
        self,
        question: str,
        left: str,
        right: str,
        voter: str = "me",
        *,
        left_text: str | None = None,
        right_text: str | None = None,
    ) -> bool:
        """Whether a voter has voted on this pair, whichever side each system was on.

        Args:
            question, left, right, voter, left_text, right_text: see `add`. A vote on different or
                unknown answers is a different vote.

        Raises:
            ValueError: see `add`.
        """
        answers = _answers(left, left_text, right, right_text)
        return Vote(question, left, right, "tie", voter, answers).key in self._standing()

    def withdraw(self, vote: Vote) -> None:
        """Withdraw a vote, by appending a line to the file.

        Raises:
            ValueError: there is no such vote, or it has already been withdrawn.
        """
        checks.a("vote", vote, Vote, "a Vote")
        with appending(self.path) as append:
            if vote.key not in self._standing():
                raise ValueError(f"{self.path} holds no vote of {vote.voter} on {vote.question!r}.")
            append({**asdict(vote), "winner": _WITHDRAWN, "time": _now()})


def _answers(left: str, left_text: str | None, right: str, right_text: str | None) -> str:
    if left_text is None and right_text is None:
        return ""
    for name, text in (("left_text", left_text), ("right_text", right_text)):
        if not isinstance(text, str):
            raise checks.refuse(name, text, "a text: give both answers, or neither")
    return answers_fingerprint(left, left_text, right, right_text)


def votes_from_verdicts(
    questions: Sequence[str],
    verdicts: Sequence[Any],
    first: str,
    second: str,
    voter: str = "judge",
    *,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
) -> list[Vote]:
    """Convert a judge's verdicts to votes, to count them or to compare them with people's votes.

    Args:
        questions: what was asked.
        verdicts: for each question "first", "second", "tie" or None, as `position_bias` returns
            them, or the result of `Judge.compare`. None gives no vote.
        first, second: the names of the two systems.
        voter: the judge's name.
        texts: the answers of the first and of the second system, to distinguish these votes from
            votes on other answers.

    Raises:
        ValueError: lists of different lengths, an unknown verdict, or not a valid vote (see
            `Vote`).
    """
    sides = {"first": "left", "second": "right", "tie": "tie"}
    questions = checks.texts("questions", questions)
    verdicts = checks.items("verdicts", verdicts, "verdicts")
    for name, given in (("first", first), ("second", second), ("voter", voter)):
        checks.text(name, given, empty=False)
    if texts is None:
        left = right = [None] * len(questions)
    else:
        pair = checks.items("texts", texts, "two lists of answers")
        if len(pair) != 2:
            raise checks.refuse("texts", texts, "two lists of answers")
        left, right = (checks.texts("texts", some) for some in pair)
    if len({len(questions), len(verdicts), len(left), len(right)}) > 1:
        raise ValueError(
            f"There are {len(questions)} questions, {len(verdicts)} verdicts, {len(left)} and "
            f"{len(right)} answers; it takes one of each."
        )
    votes = []
    for question, verdict, one, other in zip(questions, verdicts, left, right, strict=True):
        winner = getattr(verdict, "winner", verdict)
        if winner is None:
            continue
        if not isinstance(winner, str) or winner not in sides:
            possible = f"{', '.join(sides)} or None"
            raise checks.refuse("a verdict (verdicts)", winner, possible)
        answers = _answers(first, one, second, other)
        votes.append(Vote(question, first, second, sides[winner], voter, answers))
    return votes
