"""How far a judge can be trusted: its biases, its accuracy, its agreement with itself.

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
    """Refuse what lacks a judge's methods; whose class it is does not matter."""
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
    """For each pair the verdicts as given and as swapped, both on the pair as given."""
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
    """A win that both orders give; else a tie; None where one could not be read."""
    if one is None or other is None:
        return None
    return one if one == other else "tie"


@dataclass(frozen=True)
class PositionBias:
    """What a judge makes of the order; see `position_bias`. The five shares add up to 1.

    Attributes:
        pairs: how many pairs were judged, each in both orders.
        consistent: the share with the same verdict in both orders; 1 is best.
        prefers_first: the share where the answer shown first won both times.
        prefers_second: the share where the answer shown second won both times.
        mixed: the share with a tie in one order only.
        unreadable: the share without a readable verdict in one order at least.
        verdicts: for each pair "first" or "second" where both orders agree on it, else "tie"; None
            where one could not be read.
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
    """Each pair judged in both orders: how often the order decides, and the verdicts without it.

    Source: Zheng et al. 2023, arXiv 2306.05685, section 3.4 and table 2; a win counts only where
    both orders give it.

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
        else:  # the second time "first" stood second
            kinds["prefers_first" if one == "first" else "prefers_second"] += 1
    names = ("consistent", "prefers_first", "prefers_second", "mixed", "unreadable")
    shares = {name: kinds[name] / len(both) for name in names}
    return PositionBias(len(both), **shares, verdicts=[_agreed(*pair) for pair in both])


def add_filler(answer: str, sentences: int = 4) -> str:
    """An answer made longer without content: empty phrases before and behind it.



    Args:
        answer: the answer, which stays in it word for word.
        sentences: how many phrases, 1 to 10,000.

    Raises:
        BadValue: no text, fewer than 1, or more than 10,000.
    """
    checks.text("answer", answer)
    checks.whole("sentences", sentences, least=1, most=10_000)
    phrases = [_FILLER[number % len(_FILLER)] for number in range(sentences)]
    half = sentences // 2
    return " ".join([*phrases[:half], answer, *phrases[half:]])


@dataclass(frozen=True)
class VerbosityBias:
    """What a judge makes of length; see `verbosity_bias`. Each pair is judged in both orders.

    Attributes:
        pairs: how many pairs of a short and a padded answer.
        longer: the share where the padded answer won in both orders; 0 is best.
        shorter: the share where the short one did.
        tie: the share of ties, and of pairs where the orders disagree.
        unreadable: the share without a readable verdict in one order at least.
        wrong_longer: of long wrong answers against short right ones, the share where the wrong one
            won in both orders; None where no wrong answers were given.
        right_shorter: the share where the right one did; None likewise.
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
    """Good short answers against the same made longer, and against long wrong ones.

    After the repetitive-list attack of Zheng et al. 2023, arXiv 2306.05685, section 3.3.

    Args:
        judge, questions, references: see `Judge.compare`.
        good: right and short answers.
        padded: the same made longer without content; by default `add_filler` of each.
        wrong: wrong answers, which are padded too; without them there is no second test.

    Raises:
        ValueError: see `Judge.compare`; a padded answer that is not longer.
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
    """How often a judge prefers the right answer; see `judge_accuracy`.

    Attributes:
        pairs: how many pairs were judged, each in both orders.
        accuracy: the share where the right answer won in both orders; 1/4 by throwing a coin.
        low, high: the ends of its 95 % interval (Clopper-Pearson).
        wrong: the share where the wrong answer won in both orders.
        tie: the share of ties, and of pairs where the orders disagree.
        unreadable: the share without a readable verdict in one order at least.
        each_order: the share of single judgements, two a pair, that prefer the right answer; 1/2 by
            throwing a coin, or by always choosing one side.
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
    """Whether a judge prefers right answers to wrong ones, which are known. Both orders are asked.

    The interval is of the pairs, as the two orders of a pair are not independent. Source: Clopper
    and Pearson, Biometrika 26 (1934), 404, through `scipy.stats.binomtest`.

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
    """How far a judge agrees with itself; see `self_agreement`.

    Attributes:
        pairs: how many pairs were judged twice.
        equal: of those with two readable verdicts, the share with equal ones; NaN if there is none.
        alpha: Krippendorff's alpha of the two runs; see `krippendorff_alpha`.
        unreadable: the share without a readable verdict in one run at least.
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
    """The same comparisons asked twice, in the same order, with two seeds.



    Args:
        judge, questions, firsts, seconds, references: see `Judge.compare`; the judge's `ask` has to
            take `seed` and `temperature`.
        seeds: the two seeds.
        temperature: how freely the judge's words are drawn; at 0 a seed changes nothing.

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
