"""The checks of notebook 09."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from course_utils.exercises._check import Wrong, call, exercise, number

# Examples of an update, of a micro-batch, processes, and what each process accumulates.
_WHOLE = ((8, 2, 1, 4), (8, 2, 2, 2), (64, 4, 16, 1), (96, 3, 8, 4), (1, 1, 1, 1))
_IMPOSSIBLE = ((8, 2, 3), (8, 2, 8), (100, 8, 4), (7, 2, 1))


@exercise(
    "09.1",
    "How many examples go through all processes together, if each takes one micro-batch?",
    "Divide the examples of an update by those of one micro-batch of all processes.",
    "`effective % together` is 0 if whole batches are enough. And each process needs one at least.",
)
def _accumulation(function: Callable[..., Any]) -> None:
    for effective, per_device, processes, wanted in _WHOLE:
        what = f"{effective} examples in batches of {per_device} on {processes} processes: "
        given = call(function, effective, per_device, processes)
        steps = number(given, f"{what}a whole number is expected", whole=True)
        if steps != wanted:
            raise Wrong(
                f"{what}with {steps} micro-batches each, an update sees "
                f"{steps * per_device * processes} examples."
            )
    for effective, per_device, processes in _IMPOSSIBLE:
        what = f"{effective} examples in batches of {per_device} on {processes} processes"
        try:
            given = function(effective, per_device, processes)
        except ValueError as error:
            together = per_device * processes
            named = [int(word) for word in "".join(_digits(str(error))).split()]
            if not any(n != effective and n >= together and n % together == 0 for n in named):
                raise Wrong(
                    f"{what}: your message, {str(error)!r:.80}, names no effective batch size that "
                    f"is possible, such as {together}."
                ) from None
        except Exception as error:  # whatever the learner's function does
            raise Wrong(f"{what}: a ValueError is expected, not {type(error).__name__}.") from error
        else:
            raise Wrong(f"{what} is not possible with whole batches, and you return {given!r:.40}.")


def _digits(text: str) -> list[str]:
    return [letter if letter.isdigit() else " " for letter in text]


def _ranks(*tokens: int) -> tuple[list[torch.Tensor], list[int], torch.Tensor]:
    """Each rank's mean over tokens of its own, and the mean over all of them."""
    generator = torch.Generator().manual_seed(sum(tokens))
    each = [torch.randn(count, 3, 2, generator=generator) for count in tokens]
    return [part.mean(0) for part in each], list(tokens), torch.cat(each).mean(0)


@exercise(
    "09.2",
    "From a mean and a count, how do you get back the sum?",
    "Multiply each gradient by its number of tokens, add, and divide by the number of all tokens.",
    "Leave out the ranks without tokens: a number times NaN is NaN, even if the number is 0.",
)
def _combined(function: Callable[..., Any]) -> None:
    for tokens in ((10, 90), (5, 5), (7,), (1, 2, 3, 4), (0, 6), (4, 0, 12)):
        gradients, counts, wanted = _ranks(*tokens)
        before = [gradient.clone() for gradient in gradients]
        given = call(function, list(gradients), list(counts))
        what = f"With {' and '.join(map(str, tokens))} tokens: "
        if not isinstance(given, torch.Tensor) or given.shape != wanted.shape:
            raise Wrong(f"{what}a tensor of shape {tuple(wanted.shape)} is expected.")
        if not torch.isfinite(given).all():
            raise Wrong(f"{what}the result is not finite. Which rank's gradient is not a number?")
        if any(
            not torch.equal(a, b)
            for a, b in zip(before, gradients, strict=True)
            if a.isfinite().all()
        ):
            raise Wrong(f"{what}your function changes the gradients that it is given.")
        if not torch.allclose(given, wanted, atol=1e-5):
            full = [gradient for gradient, count in zip(gradients, counts, strict=True) if count]
            of_means = torch.stack(full).mean(0)
            told = ": this is the mean of the means" if torch.allclose(given, of_means) else ""
            raise Wrong(f"{what}not the mean over all tokens{told}.")


@exercise(
    "09.3",
    "How many rows does the first rank get? Divide, and round up.",
    "The second rank gets as many, if there are so many left. And so on, down to none.",
    "`min(each, what is left)`, and never less than 0.",
)
def _shards(function: Callable[..., Any]) -> None:
    for rows, world in ((8, 2), (9, 8), (5, 4), (3, 8), (64, 8), (10, 4), (1, 1), (7, 3)):
        given = call(function, rows, world)
        what = f"{rows} rows on {world} ranks: "
        if not isinstance(given, list | tuple) or len(given) != world:
            raise Wrong(f"{what}a list of {world} numbers is expected; this is {given!r:.60}.")
        found = [number(each, f"{what}whole numbers are expected", whole=True) for each in given]
        if sum(found) != rows:
            raise Wrong(f"{what}your shards have {sum(found)} rows together.")
        pieces = torch.chunk(torch.zeros(rows), world)
        wanted = [len(piece) for piece in pieces] + [0] * (world - len(pieces))
        if found != wanted:
            raise Wrong(
                f"{what}{found} is not how FSDP2 cuts. All pieces have the same size, rounded up, "
                "until the rows are used up."
            )
