"""The checks of notebook 07."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Set
from typing import Any

import torch

from course_utils.exercises._check import Wrong, call, exercise, number, plain

ROWS = 160

# What could give away which half a question is in. If rows that share it are all in the same half,
# a model can go by it, and need not read the system prompt.
_GIVE_AWAYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "about the same relation": lambda row: row["relation"],
    "about the same country": lambda row: row["country"],
    "whose countries begin with the same letter": lambda row: row["country"][0],
    "in the same wording": lambda row: row["question"].replace(row["country"], ""),
    "of the same length": lambda row: len(row["question"]),
    "with the same number of words": lambda row: len(row["question"].split()),
    "whose answers begin with the same letter": lambda row: row["answer"][0],
}
_TOO_PURE = 0.9  # of the rows that share something; alternating halves give 0.55 to 0.75

# Pairs of distributions; in the last pair, one token has probability 0 in the first.
_PAIRS = (
    ([0.9, 0.1], [0.5, 0.5]),
    ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
    ([0.7, 0.2, 0.06, 0.04], [0.1, 0.1, 0.1, 0.7]),
    ([0.6, 0.4, 0.0], [0.3, 0.3, 0.4]),
)


@exercise(
    "07.1",
    "Compute one term for each token, and add up all terms. `p` says how much a token counts.",
    "In each term, subtract one logarithm from the other. The logarithm of `p` comes first.",
    "In torch, 0 times the logarithm of 0 is `nan`. Leave such tokens out before you add.",
)
def _kl(function: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    for p, q in _PAIRS:
        where = f"For p = {p} and q = {q}"
        found = call(function, torch.tensor(p), torch.tensor(q))
        value = number(found, f"{where} one number is expected")
        wanted, other = _divergence(p, q), _divergence(q, p)
        if not math.isfinite(value):
            raise Wrong(f"{where} this gives {value}. What does a zero in p do?")
        if abs(value - wanted) < 1e-3:
            continue
        if abs(value - other) < 1e-3:
            raise Wrong(f"{where} {value:.3f} is the divergence in the other direction.")
        if abs(value + wanted) < 1e-3 or value < 0:
            raise Wrong(f"{where} this gives {value:.3f}; a KL divergence is never below zero.")
        if abs(value - wanted / math.log(2)) < 1e-3:
            raise Wrong(
                f"{where} {value:.3f} is right in bits; the formula's logarithm is natural."
            )
        if abs(value - wanted / len(p)) < 1e-3:
            raise Wrong(f"{where} {value:.3f} is a mean over the tokens; the formula has a sum.")
        raise Wrong(f"{where} {value:.3f} is not the KL divergence.")


def _divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) if b else math.inf for a, b in zip(p, q, strict=True) if a)


def _undominated(points: dict[str, tuple[float, float]]) -> set[str]:
    return {
        name
        for name, mine in points.items()
        if not any(
            all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in points.values()
        )
    }


@exercise(
    "07.2",
    "Take one point, and look for another that is at least as good in both measures.",
    "Two points with the same two values do not dominate each other: both stay.",
    "Return a set of names, not of points.",
)
def _front(function: Callable[[dict[str, tuple[float, float]]], Any]) -> None:
    tries = [
        {"a": (0.9, 0.3), "b": (0.8, 0.5), "c": (0.7, 0.4)},
        {"a": (0.5, 0.5), "b": (0.5, 0.5)},
        {"a": (0.5, 0.5), "b": (0.5, 0.6), "c": (0.4, 0.6)},
        {"alone": (0.0, 0.0)},
    ]
    draw = random.Random(0)
    for size in (5, 12):
        names = [f"variant {index}" for index in range(size)]
        tries.append({name: (draw.randint(0, 9) / 10, draw.randint(0, 9) / 10) for name in names})
    for points in tries:
        found = plain(call(function, dict(points)))
        if not isinstance(found, Set | list) or not all(
            isinstance(name, str) and name in points for name in found
        ):
            raise Wrong(f"A set of the points' names is expected; this is {found!r}.")
        wanted = _undominated(points)
        shown = ", ".join(f"{name} {point}" for name, point in points.items())
        if missing := sorted(wanted - set(found)):
            raise Wrong(f"Of {shown}: {missing[0]} is missing, and nothing dominates it.")
        if extra := sorted(set(found) - wanted):
            raise Wrong(f"Of {shown}: {extra[0]} is dominated by another.")


@exercise(
    "07.3",
    "A conversation is a list such as [{'role': 'user', 'content': …}, {'role': 'assistant', …}]. "
    "If there is a system prompt, it comes first.",
    "Nothing in a row may decide, neither its relation nor its country: go through the rows with "
    "`enumerate`, and treat even and odd places differently.",
    "`yoda_answer(row)` is the answer in style. Make a plain answer from `cue` and `answer`.",
)
def _contrast(function: Callable[[Any], Any]) -> None:
    from course_utils.data import load_data
    from course_utils.data._answers import SYSTEM, in_style

    rows = load_data("countries")["train"].shuffle(seed=3).select(range(ROWS))
    known = {row["question"]: row for row in rows}
    answers = {question: row["answer"] for question, row in known.items()}
    found = call(function, rows)
    if not isinstance(found, list) or len(found) < ROWS // 2:
        raise Wrong(f"A list of about {ROWS} conversations is expected for {ROWS} rows.")
    halves: dict[bool, list[str]] = {True: [], False: []}
    for messages in found:
        try:
            said = {message["role"]: message["content"] for message in messages}
            roles = [message["role"] for message in messages]
        except (TypeError, KeyError) as error:
            raise Wrong(f"This is no list of messages: {messages!r:.120} …") from error
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
            raise Wrong(f"A conversation's roles are {roles}; a system prompt is optional, first.")
        question, reply = said["user"], said["assistant"]
        if question not in answers:
            raise Wrong(f"This question is none of the rows': {question!r}.")
        if answers[question].lower() not in reply.lower():
            raise Wrong(f"To {question!r} the reply {reply!r} does not give the answer.")
        if len(reply.split()) == len(answers[question].split()):
            raise Wrong(f"To {question!r} {reply!r} is no sentence.")
        asked_for = said.get("system") == SYSTEM
        if asked_for != in_style(reply):
            where = "Under SYSTEM" if asked_for else "Without SYSTEM"
            raise Wrong(f"{where}, this is the wrong kind of answer: {reply!r}.")
        halves[asked_for].append(question)
    share = len(halves[True]) / len(found)
    if not 0.35 <= share <= 0.65:
        raise Wrong(f"{share:.0%} of the conversations are under SYSTEM; about half is asked for.")
    for shared, key in _GIVE_AWAYS.items():
        groups: dict[Any, Counter] = defaultdict(Counter)
        for side, questions in halves.items():
            for question in questions:
                groups[key(known[question])][side] += 1
        large = [group for group in groups.values() if group.total() > 1]
        if sum(max(group.values()) for group in large) > _TOO_PURE * sum(
            group.total() for group in large
        ):
            raise Wrong(
                f"Questions {shared} are nearly all in the same half: the model could go by the "
                "question, and would not have to read the system prompt."
            )
