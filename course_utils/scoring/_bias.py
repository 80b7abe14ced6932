"""How far a judge can be trusted: its biases, its accuracy and its self-agreement.

The tests for bias follow Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena",
arXiv 2306.05685. Introduced in notebook 08.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course_utils._core import checks
from course_utils.scoring._judge import check_columns

if TYPE_CHECKING:
    from course_utils.scoring._judge import Judge

_FILLER = (
    "This is an important question, and it deserves a careful and complete answer.",
    "There are many things that one could say about it, and each of them matters.",
    "All in all, the points above give a full picture of the matter at hand.",
    "I hope that this detailed explanation is helpful to you.",
)
_SWAPPED = {"first": "second", "second": "first", "tie": "tie", None: None}


def _can(judge: Any, *methods: str) -> None:
    """Refuse an object without a judge's methods; its class does not matter."""
    for name in methods:
        if not callable(getattr(judge, name, None)):
            raise checks.refuse("judge", judge, f"a Judge, or anything else that has {name}(…)")


def _both_orders(
    judge: Judge,
    questions: Sequence[str],
    firsts: Sequence[str],
    seconds: Sequence[str],
    references: Sequence[str] | None,
) -> list[tuple[str | None, str | None]]:
    """For each pair, the verdicts in both orders, both in terms of the order given."""
    _can(judge, "compare")
    check_columns(questions=questions, firsts=firsts, seconds=seconds, references=references)
    verdicts = judge.compare(
        [*questions, *questions],
        [*firsts, *seconds],
        [*seconds, *firsts],
        None if references is None else [*references, *references],
    )
    count = len(questions)
    return [
        (one.winner, _SWAPPED[other.winner])
        for one, other in zip(verdicts[:count], verdicts[count:], strict=True)
    ]


def _agreed(one: str | None, other: str | None) -> str | None:
    """Return the winner if both orders agree, else a tie; None if a verdict is unreadable."""
    if one is None or other is None:
        return None
    return one if one == other else "tie"


@dataclass(frozen=True)
class PositionBias:
    """A judge's position bias, see `position_bias`. The five shares add up to 1.

    Attributes:
        pairs: how many pairs were judged, each in both orders.
        consistent: the share with the same verdict in both orders; 1 is best.
        prefers_first: the share where the answer shown first won both times.
        prefers_second: the share where the answer shown second won both times.
        mixed: the share with a tie in only one order.
        unreadable: the share with an unreadable verdict in at least one order.
        verdicts: for each pair, "first" or "second" if both orders agree on it, else "tie"; None
            if a verdict is unreadable.
    """

    pairs: int
    consistent: float
    prefers_first: float
    prefers_second: float
    mixed: float
    unreadable: float
    verdicts: list[str | None]


def position_bias(
    judge: Judge,
    questions: Sequence[str],
    firsts: Sequence[str],
    seconds: Sequence[str],
    references: Sequence[str] | None = None,
) -> PositionBias:
    """Judge each pair in both orders, to measure the position bias and to get verdicts free of it.

    Source: Zheng et al. 2023, arXiv 2306.05685, section 3.4 and table 2; a win counts only if both
    orders agree on it.

    Args:
        judge, questions, firsts, seconds, references: see `Judge.compare`.

    Raises:
        ValueError: see `Judge.compare`.
    """
    both = _both_orders(judge, questions, firsts, seconds, references)
    kinds: Counter[str] = Counter()
    for one, other in both:
        if one is None or other is None:
            kinds["unreadable"] += 1
        elif one == other:
            kinds["consistent"] += 1
        elif "tie" in (one, other):
            kinds["mixed"] += 1
        else:  # when swapped, "first" was shown second
            kinds["prefers_first" if one == "first" else "prefers_second"] += 1
    names = ("consistent", "prefers_first", "prefers_second", "mixed", "unreadable")
    shares = {name: kinds[name] / len(both) for name in names}
    return PositionBias(len(both), **shares, verdicts=[_agreed(*pair) for pair in both])


def add_filler(answer: str, sentences: int = 4) -> str:
    """Pad an answer with empty phrases before and after it, which make it longer without content.

    Args:
        answer: the answer, which is kept word for word.
        sentences: the number of phrases, 1 to 10,000.

    Raises:
        BadValue: `answer` is not a string, or `sentences` is below 1 or above 10,000.
    """
    checks.text("answer", answer)
    checks.whole("sentences", sentences, least=1, most=10_000)
    phrases = [_FILLER[number % len(_FILLER)] for number in range(sentences)]
    half = sentences // 2
    return " ".join([*phrases[:half], answer, *phrases[half:]])


@dataclass(frozen=True)
class VerbosityBias:
    """A judge's verbosity bias, see `verbosity_bias`. Each pair is judged in both orders.

    Attributes:
        pairs: the number of pairs of a short and a padded answer.
        longer: the share where the padded answer won in both orders; 0 is best.
        shorter: the share where the short answer won in both orders.
        tie: the share of ties and of pairs where the orders disagree.
        unreadable: the share with an unreadable verdict in at least one order.
        wrong_longer: of pairs of a long wrong and a short right answer, the share where the wrong
            one won in both orders; None if no wrong answers were given.
        right_shorter: the share of those where the right one did; None likewise.
    """

    pairs: int
    longer: float
    shorter: float
    tie: float
    unreadable: float
    wrong_longer: float | None = None
    right_shorter: float | None = None


def verbosity_bias(
    judge: Judge,
    questions: Sequence[str],
    good: Sequence[str],
    padded: Sequence[str] | None = None,
    *,
    wrong: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
) -> VerbosityBias:
    """Compare short good answers with padded versions of them, and with long wrong answers.

    Modelled on the repetitive-list attack of Zheng et al. 2023, arXiv 2306.05685, section 3.3.

    Args:
        judge, questions, references: see `Judge.compare`.
        good: short, correct answers.
        padded: the same answers, longer but without more content; by default `add_filler` of each.
        wrong: wrong answers, which are padded too; without them the second test is skipped.

    Raises:
        ValueError: see `Judge.compare`; or a padded answer is not longer.
    """
    check_columns(questions=questions, good=good, padded=padded, wrong=wrong, references=references)
    padded = [add_filler(answer) for answer in good] if padded is None else padded
    for short, long in zip(good, padded, strict=True):
        if len(long) <= len(short):
            raise ValueError(f"The padded answer {long!r} is no longer than {short!r}.")
    verdicts = [_agreed(*two) for two in _both_orders(judge, questions, good, padded, references)]
    kinds = Counter(verdicts)
    count = len(verdicts)
    second: dict[str, float] = {}
    if wrong is not None:
        long_wrong = [add_filler(answer) for answer in wrong]
        both = _both_orders(judge, questions, good, long_wrong, references)
        against = Counter(_agreed(*pair) for pair in both)
        second = {
            "wrong_longer": against["second"] / count,
            "right_shorter": against["first"] / count,
        }
    return VerbosityBias(
        pairs=count,
        longer=kinds["second"] / count,
        shorter=kinds["first"] / count,
        tie=kinds["tie"] / count,
        unreadable=kinds[None] / count,
        **second,
    )


@dataclass(frozen=True)
class JudgeAccuracy:
    """How often a judge prefers the right answer, see `judge_accuracy`.

    Attributes:
        pairs: how many pairs were judged, each in both orders.
        accuracy: the share where the right answer won in both orders; 1/4 by tossing a coin.
        low, high: the ends of its 95% confidence interval (Clopper-Pearson).
        wrong: the share where the wrong answer won in both orders.
        tie: the share of ties and of pairs where the orders disagree.
        unreadable: the share with an unreadable verdict in at least one order.
        each_order: the share of single judgements, two per pair, that prefer the right answer; 1/2
            by tossing a coin, or by always choosing the same side.
    """

    pairs: int
    accuracy: float
    low: float
    high: float
    wrong: float
    tie: float
    unreadable: float
    each_order: float


def judge_accuracy(
    judge: Judge,
    questions: Sequence[str],
    right: Sequence[str],
    wrong: Sequence[str],
    references: Sequence[str] | None = None,
) -> JudgeAccuracy:
    """Measure how often a judge prefers known right answers to wrong ones, in both orders.

    The confidence interval is computed over pairs, as the two orders of a pair are not independent.
    Source: Clopper and Pearson, Biometrika 26 (1934), 404, via `scipy.stats.binomtest`.

    Args:
        judge, questions, references: see `Judge.compare`.
        right, wrong: answers known to be right and wrong.

    Raises:
        ValueError: see `Judge.compare`.
    """
    from scipy.stats import binomtest

    checks.texts("wrong", wrong)
    check_columns(questions=questions, right=right, wrong=wrong, references=references)
    both = _both_orders(judge, questions, right, wrong, references)
    kinds = Counter(_agreed(*pair) for pair in both)
    count = len(both)
    ends = binomtest(kinds["first"], count).proportion_ci(0.95)
    return JudgeAccuracy(
        pairs=count,
        accuracy=kinds["first"] / count,
        low=float(ends.low),
        high=float(ends.high),
        wrong=kinds["second"] / count,
        tie=kinds["tie"] / count,
        unreadable=kinds[None] / count,
        each_order=sum(pair.count("first") for pair in both) / (2 * count),
    )


@dataclass(frozen=True)
class SelfAgreement:
    """How far a judge agrees with itself, see `self_agreement`.

    Attributes:
        pairs: how many pairs were judged twice.
        equal: the share with equal verdicts among pairs with two readable ones; NaN if none have.
        alpha: Krippendorff's alpha of the two runs; see `krippendorff_alpha`.
        unreadable: the share with an unreadable verdict in at least one run.
    """

    pairs: int
    equal: float
    alpha: float
    unreadable: float


def self_agreement(
    judge: Judge,
    questions: Sequence[str],
    firsts: Sequence[str],
    seconds: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    seeds: tuple[int, int] = (0, 1),
    temperature: float = 0.7,
) -> SelfAgreement:
    """Repeat the same comparisons, in the same order, with a second seed.

    Args:
        judge, questions, firsts, seconds, references: see `Judge.compare`; the judge's `ask` must
            accept `seed` and `temperature`.
        seeds: the two seeds.
        temperature: the judge's sampling temperature; at 0 the seed has no effect.

    Raises:
        ValueError: see `Judge.compare`.
    """
    from course_utils.scoring._ratings import krippendorff_alpha

    _can(judge, "compare", "replace")
    for seed in (seeds := checks.items("seeds", seeds, "two seeds")):
        checks.whole("seeds", seed, least=0, most=2**32 - 1)
    if len(seeds) != 2:
        raise checks.refuse("seeds", seeds, "two whole numbers")
    checks.number("temperature", temperature, least=0)
    runs = []
    for seed in seeds:
        asked = judge.replace(seed=seed, temperature=temperature)
        verdicts = asked.compare(questions, firsts, seconds, references)
        runs.append([verdict.winner for verdict in verdicts])
    readable = [pair for pair in zip(*runs, strict=True) if None not in pair]
    equal = sum(one == other for one, other in readable)
    return SelfAgreement(
        pairs=len(runs[0]),
        equal=equal / len(readable) if readable else float("nan"),
        alpha=krippendorff_alpha(*runs),
        unreadable=1 - len(readable) / len(runs[0]),
    )
