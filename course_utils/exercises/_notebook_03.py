"""The checks of notebook 03."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from course_utils.exercises._check import Wrong, call, exercise, number, plain

_END = 2


@exercise(
    "03.1",
    "In a padded batch, each row is as long as the longest example.",
    "How many places does the batch have in all? How many of them hold a token of an example?",
    "Draw the batch for [5, 1, 3] on paper, and count.",
)
def _padding(function: Callable[[list[int]], float]) -> None:
    for lengths in ([20, 22, 25, 30], [20, 22, 25, 200], [8, 8, 8], [5, 1, 3], [7]):
        given = number(call(function, list(lengths)))
        shown = f"For {lengths} you gave {given:.3g}. "
        if not 0 <= given < 1:
            raise Wrong(shown + "A share lies between 0 and 1, and no batch is padding alone.")
        places, tokens = len(lengths) * max(lengths), sum(lengths)
        if math.isclose(given, 1 - tokens / places, abs_tol=1e-6):
            continue
        if tokens == places:
            raise Wrong(shown + "These are equally long.")
        if math.isclose(given, tokens / places, abs_tol=1e-6):
            raise Wrong(shown + "That is the share of what is *not* padding.")
        if math.isclose(given, 1 - min(lengths) / max(lengths), abs_tol=1e-6):
            raise Wrong(shown + "That is so in one row; the others have less padding.")
        if math.isclose(given, 1 - tokens / places, abs_tol=0.01):
            raise Wrong(shown + "That is nearly right: do not round it.")
        raise Wrong(shown + "It should be the padding's places, as a share of all places.")


@exercise(
    "03.2",
    "Begin with a copy of the ids, and put -100 in some of its places.",
    "There may be an EOS token in the prompt, too. So look for one from `prompt_length` on.",
    "An example that was cut has no EOS token after its prompt. Then all of its answer is a label.",
)
def _labels(function: Callable[[list[int], int, int], list[int]]) -> None:
    # ids, prompt length: a plain one, one with the EOS token in its prompt, truncated ones.
    cases = (
        ([11, 12, 13, 14, _END, _END, _END], 2),
        ([11, _END, 13, 14, 15, _END, _END], 3),
        ([11, 12, 13, 14], 2),
        ([11, _END, 13, 14], 2),
        ([11, 12, _END], 2),
    )
    for ids, prompt in cases:
        given = plain(call(function, list(ids), prompt, _END))
        if not isinstance(given, list) or len(given) != len(ids):
            raise Wrong(f"For {ids} a list of {len(ids)} labels is expected; this is {given!r}.")
        shown = f"For ids {ids}, prompt length {prompt} and end id {_END} you gave {given}. "
        if any(label != -100 for label in given[:prompt]):
            raise Wrong(shown + "The prompt is trained on.")
        answer = ids[prompt:]
        last = answer.index(_END) if _END in answer else len(answer) - 1
        if given[prompt + last] == -100 and answer[last] == _END:
            raise Wrong(shown + "The EOS token is not trained on: the model would never stop.")
        if any(label != -100 for label in given[prompt + last + 1 :]):
            raise Wrong(shown + "Something behind the first EOS token is trained on.")
        if given[prompt : prompt + last + 1] != answer[: last + 1]:
            raise Wrong(shown + "The answer's labels should be its own ids, in place.")


def _listed(given: Any) -> list[Any]:
    """Return what any collection holds: a list, a set, an array, the values of a dictionary."""
    given = plain(given)
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise Wrong("A list of lists of indices is expected.")
    return list(given)


@exercise(
    "03.3",
    "Keep a list of the rows, and another one of how much room each row has left.",
    "Put an example into the first row that has room for it. If no row has room, open a new one.",
    "Small examples fit into the gaps that large ones leave. So which should you place first?",
)
def _pack(function: Callable[[list[int], int], list[list[int]]]) -> None:
    rng = random.Random(0)
    for room, count in ((10, 6), (64, 60), (128, 200)):
        lengths = [rng.randint(1, room // 2) for _ in range(count)]
        given = [_listed(row) for row in _listed(call(function, list(lengths), room))]
        span = f"There are {count} examples: the indices go from 0 to {count - 1}"
        given = [[number(index, span, whole=True) for index in row] for row in given]
        placed = [index for row in given for index in row]
        if placed and not 0 <= min(placed) <= max(placed) < count:
            raise Wrong(f"{span}.")
        if sorted(placed) != list(range(count)):
            raise Wrong("Each example has to be in exactly one row.")
        fullest = max(sum(lengths[index] for index in row) for row in given)
        if fullest > room:
            raise Wrong(f"A row holds {fullest} tokens, and there is room for {room}.")
        best = math.ceil(sum(lengths) / room)
        if len(given) > best + 1:
            raise Wrong(
                f"{len(given)} rows for {count} examples; {best + 1} can be done. Some rows "
                "have room left that later examples would fit into."
            )
