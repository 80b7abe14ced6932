"""The checks of notebook 10."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from course_utils.exercises._check import Wrong, call, exercise, number

_BYTES = {"f16": 64, "q8_0": 34, "q4_0": 18}


@exercise(
    "10.1",
    "How many blocks of 32 weights are there, and how many bytes does each take?",
    "With q4_0 the embeddings take 34 bytes a block. What takes 4 bytes a weight, in any format?",
    "Add the three parts in bytes, and divide by 10⁶ at the end.",
)
def _size(function: Callable[..., Any]) -> None:
    cases = [(106_168_320, 28_311_552, 35_136), (3_200, 0, 0), (0, 6_400, 0), (0, 0, 500)]
    for matrices, embeddings, others in cases:
        for fmt, block in _BYTES.items():
            given = call(function, matrices, embeddings, others, fmt)
            what = f"{matrices:,}, {embeddings:,} and {others:,} weights in {fmt}: "
            found = number(given, f"{what}a number is expected")
            of_embeddings = _BYTES["q8_0"] if fmt == "q4_0" else block
            wanted = (matrices * block / 32 + embeddings * of_embeddings / 32 + 4 * others) / 1e6
            if math.isclose(found, wanted, rel_tol=1e-6):
                continue
            if math.isclose(found, wanted * 1e6 / 2**20, rel_tol=1e-6):
                raise Wrong(f"{what}this is in MiB (2^20 bytes). MB are 10⁶ bytes.")
            if math.isclose(found, wanted * 1e6, rel_tol=1e-6):
                raise Wrong(f"{what}these are bytes. Divide by 10⁶.")
            alike = (matrices + embeddings) * block / 32 + 4 * others
            if fmt == "q4_0" and math.isclose(found * 1e6, alike, rel_tol=1e-6):
                raise Wrong(f"{what}with q4_0, the embeddings are in q8_0.")
            raise Wrong(f"{what}{found:.6g} MB is not what the file takes.")


@exercise(
    "10.2",
    "Compare the two lists first. If they are equal, nothing differs.",
    "Put the BOS token in front of one list. Is it now the other?",
    "A BOS token in front is one too many only if the reference begins with one already.",
)
def _tokens(function: Callable[..., Any]) -> None:
    cases = [
        ([1, 5, 6], [1, 5, 6], "same"),
        ([1, 5, 6], [1, 1, 5, 6], "bos twice"),
        ([1, 5, 6], [5, 6], "bos missing"),
        ([1, 5, 6], [1, 5, 7], "other"),
        ([5, 6], [5, 6], "same"),
        ([5, 6], [1, 5, 6], "other"),
        ([1, 1, 5], [1, 5], "bos missing"),
        ([1, 5, 6], [2, 1, 5, 6], "other"),
        ([1, 5, 6], [1, 1, 5, 7], "other"),
        ([1, 1, 5], [1, 1, 5], "same"),
        ([1, 5, 6], [1, 5], "other"),
        ([], [], "same"),
    ]
    names = sorted({name for *_, name in cases})
    for mine, its, wanted in cases:
        given = call(function, list(mine), list(its), 1)
        what = f"{mine} in the reference, {its} at the server, and 1 is BOS: "
        if given not in names:
            raise Wrong(
                f"{what}one of {', '.join(map(repr, names))} is expected; this is {given!r:.40}."
            )
        if given != wanted:
            raise Wrong(f"{what}{given!r} is not what differs.")


@exercise(
    "10.3",
    "One term for each pair: `p * log(p / q)`, with the natural logarithm.",
    "Leave out the pairs where p is 0. What is the result if q is 0 and p is not?",
    "`math.inf` is infinity. And `math.log` refuses 0, so ask before you call it.",
)
def _kl(function: Callable[..., Any]) -> None:
    cases: list[tuple[list[float], list[float]]] = [
        ([0.5, 0.5], [0.5, 0.5]),
        ([0.9, 0.1], [0.5, 0.5]),
        ([0.5, 0.5], [0.9, 0.1]),
        ([0.0, 1.0], [0.5, 0.5]),
        ([0.5, 0.5], [0.0, 1.0]),
        ([0.2, 0.0, 0.8], [0.3, 0.0, 0.7]),
    ]
    for p, q in cases:
        given = call(function, list(p), list(q))
        what = f"p = {p}, q = {q}: "
        terms = [
            math.inf if b == 0 else a * math.log(a / b) for a, b in zip(p, q, strict=True) if a
        ]
        wanted = sum(terms)
        if wanted == math.inf:
            if given != math.inf:
                raise Wrong(f"{what}infinite is expected, `math.inf`; this is {given!r:.40}.")
            continue
        found = number(given, f"{what}a number is expected")
        if math.isclose(found, wanted, abs_tol=1e-9):
            continue
        back = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b and a)
        if math.isclose(found, back, abs_tol=1e-9):
            raise Wrong(f"{what}this is the divergence the other way round.")
        if math.isclose(found, wanted / math.log(2), abs_tol=1e-9):
            raise Wrong(f"{what}this is in bits. Take the natural logarithm.")
        raise Wrong(f"{what}{found:.6g} is not the divergence.")
