"""What `Reference.compare` asks of a model, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Messages = Sequence[dict[str, str]]

# The most probable tokens of a position that are compared; a server lists so many quickly.
LISTED = 200


@dataclass(frozen=True)
class Answer:
    """A greedy reply.

    Attributes:
        text: the reply, without the token that ends it.
        finished: whether the model ended it itself.
        prompt_tokens: how many tokens the model was given; None where a server does not say.
    """

    text: str
    finished: bool
    prompt_tokens: int | None


@dataclass(frozen=True)
class Position:
    """A model's probabilities for the next token.

    Attributes:
        ids: the most probable tokens, the likeliest first, shape (listed,), int64.
        logprobs: their natural log-probabilities, shape (listed,), float64.
    """

    ids: np.ndarray
    logprobs: np.ndarray

    def of(self, token: int) -> float:
        """Return a token's log-probability; below all listed ones, that of the last one listed."""
        here = np.flatnonzero(self.ids == token)
        return float(self.logprobs[here[0]] if len(here) else self.logprobs.min())


class Deployment(Protocol):
    """A model that can be asked: `Local` or `Server`."""

    name: str

    @property
    def precision(self) -> str:
        """What the weights are stored in, as far as is known."""
        ...

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the model gives a probability to."""
        ...

    def prompt_ids(self, messages: Messages) -> list[int] | None:
        """The tokens of a conversation in the model's own template; None where it does not say."""
        ...

    def replies(self, prompts: Sequence[Messages], max_tokens: int) -> list[Answer]:
        """Greedy replies."""
        ...

    def positions(self, prompt: list[int], reply: list[int]) -> list[Position] | None:
        """The probabilities before each token of a reply."""
        ...
