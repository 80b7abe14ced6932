"""A language model as a judge of answers: its prompt and its verdicts. Introduced in notebook 08.

The format, with a verdict in double brackets, follows Zheng et al., "Judging LLM-as-a-Judge with
MT-Bench and Chatbot Arena", arXiv 2306.05685. The prompt is our own, short enough for a small
model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from course_utils._core import checks
from course_utils.scoring._verdicts import Verdict, parse_verdict

if TYPE_CHECKING:
    from course_utils.models._running import Runner

_MAY_LACK = ("references", "padded", "wrong")


def check_columns(**columns: Sequence[str] | None) -> int:
    """Return the number of rows; raise a ValueError unless all are equally long lists of texts."""
    given = {
        name: column
        for name, column in columns.items()
        if column is not None or name not in _MAY_LACK
    }
    for name, column in given.items():
        if isinstance(column, str):
            raise ValueError(f"{name} is one text; give a list of texts.")
        checks.texts(name, column)
    sizes = {name: len(column) for name, column in given.items()}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
        told = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(f"There are {told}; it takes one of each, and one at least.")
    return next(iter(sizes.values()))


def _known(reference: str | None) -> str:
    if reference is not None:
        checks.text("reference", reference)
    return f"\n\nA correct answer: {reference}" if reference is not None else ""


def comparison_prompt(question: str, first: str, second: str, reference: str | None = None) -> str:
    """Create the prompt that asks a judge which of two answers is better: A, B, or C for a tie.

    Args:
        question: what was asked.
        first, second: the answers, shown as A and B.
        reference: a correct answer, which helps a judge that does not know it.

    Raises:
        BadValue: not a string.
    """
    for name, given in (("question", question), ("first", first), ("second", second)):
        checks.text(name, given)
    return (
        "Compare two answers to a question. Do not answer the question yourself. Neither the order "
        "nor the length of the answers matters.\n\n"
        f"Question: {question}{_known(reference)}\n\n"
        f"Answer A: {first}\n\n"
        f"Answer B: {second}\n\n"
        "Say in one sentence which answer is more correct and helpful. Then end with one line that "
        "is only your verdict: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] for "
        "a tie."
    )


def with_prefill(
    ask: Runner, prefill: str = "Verdict: [[", stop: str = "]]"
) -> Callable[..., list]:
    """Prefill each reply, for a judge that is too small to follow the format.

    The model only continues the prefill, and what it writes after `stop` is cut off, so that it
    only has to choose a letter. It can no longer explain its choice, and a readable verdict is not
    necessarily a right one.

    Args:
        ask: a model with a chat template.
        prefill: how each reply begins.
        stop: the string at which a reply ends, if the model writes it.

    Returns:
        A function to pass to `Judge` as `ask`; its replies contain the prefill and `stop`.

    Raises:
        BadValue: not a `Runner`, or an empty prefill or stop.
    """
    from course_utils.models._running import Runner

    checks.a("ask", ask, Runner, "a Runner, as runner() gives it")
    checks.text("prefill", prefill, empty=False)
    checks.text("stop", stop, empty=False)
    tokenizer = ask.tokenizer
    # The tokenizer adds a BOS token to a bare text, but the template has already written one.
    bos = tokenizer.bos_token or ""
    bos = bos if bos and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else ""

    def prefilled(prompts: list[str], *, system: str | None = None, **options: Any) -> list[str]:
        texts = [ask.prompt(text, template=True, system=system) for text in prompts]
        texts = [text.removeprefix(bos) + prefill for text in texts]
        parts = [reply.partition(stop) for reply in ask(texts, template=False, **options)]
        return [f"{prefill}{said}{stopped}" for said, stopped, _ in parts]

    return prefilled


class Judge:
    """A model that is asked which of two answers is better.

    Args:
        ask: takes a list of prompts and returns a list of replies: a `Runner`, or any
            function, such as one that asks a server.
        options: passed to `ask` in each call, such as `max_new_tokens=200`.

    Attributes:
        replies: the judge's replies in the latest call, to see why a verdict was unreadable.

    Raises:
        BadValue: `ask` cannot be called.
    """

    def __init__(self, ask: Callable[..., list[str]], **options: Any):
        self.ask = checks.function("ask", ask)
        self.options = options
        self.replies: list[str] = []

    def replace(self, **options: Any) -> Judge:
        """Return a copy of the judge with other options, such as a seed."""
        return Judge(self.ask, **{**self.options, **options})

    def _replies(self, prompts: list[str]) -> list[str]:
        replies = self.ask(prompts, **self.options)
        replies = [replies] if isinstance(replies, str) else checks.items("ask's answer", replies)
        if len(replies) != len(prompts):
            told = f"{len(prompts)} prompts and gave {len(replies)} replies"
            raise ValueError(f"ask got a list of {told}.")
        self.replies = checks.texts("ask's answer", replies)
        return self.replies

    def compare(
        self,
        questions: Sequence[str],
        firsts: Sequence[str],
        seconds: Sequence[str],
        references: Sequence[str] | None = None,
    ) -> list[Verdict]:
        """Judge which of two answers is better; each pair is judged once, in the given order.

        Judges tend to prefer one position; `position_bias` asks in both orders.

        Args:
            questions: what was asked.
            firsts, seconds: the answers of two systems.
            references: correct answers, if there are any.

        Raises:
            ValueError: not lists of texts, empty lists, or lists of different lengths; or `ask` did
                not return one reply per prompt.
        """
        count = check_columns(
            questions=questions, firsts=firsts, seconds=seconds, references=references
        )
        known = [None] * count if references is None else references
        rows = zip(questions, firsts, seconds, known, strict=True)
        replies = self._replies([comparison_prompt(*row) for row in rows])
        return [Verdict(parse_verdict(reply), reply) for reply in replies]
