"""Statistics of votes: win rates, and the agreement of voters.

Introduced in notebook 08.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import evalica
import numpy as np
import pandas as pd

from course_utils._core import checks
from course_utils.errors import BadValue
from course_utils.scoring._votes import Vote


def _some(votes: Iterable[Vote], name: str = "votes") -> list[Vote]:
    votes = checks.items(name, votes, "Vote")
    if not votes:
        raise BadValue(f"There are no votes in {name}.")
    for vote in votes:
        checks.a(f"a vote in {name}", vote, Vote, "a Vote; `Vote(**row)` makes one of a row")
    return votes


def _by_question(votes: list[Vote]) -> np.ndarray:
    """Return the number of each vote's question."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(vote.question, len(numbers)) for vote in votes])


def _draws(questions: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return how often each question is drawn, one row per resample; no rows for one question."""
    checks.whole("resamples", resamples, least=0, most=10**6)
    checks.whole("seed", seed, least=0)
    count = questions.max() + 1
    if count < 2:
        return np.zeros((0, count), dtype=int)
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile, rounded outwards to an actual value, even inf."""
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return math.nan, math.nan
    last = len(values) - 1
    return float(values[math.floor(0.025 * last)]), float(values[math.ceil(0.975 * last)])


def win_rates(votes: Iterable[Vote], *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Compute the win rate for each pair of systems; a tie counts as half a win for both.

    Args:
        votes: a `Votes` object or a list of `Vote`.
        resamples: the number of bootstrap samples.
        seed: the seed for the samples.

    Returns:
        One row per pair: `system` and `against` in alphabetical order, `votes`, `wins`, `ties`
        and `losses` of the first, `win_rate` (0 to 1), and `low` and `high`, the ends of a 95%
        percentile bootstrap interval (Efron and Tibshirani 1993). Questions are resampled with all
        their votes, as votes on the same question are not independent; so the interval covers
        other questions of the same kind, not other voters. With one question it is NaN; if all
        votes agree it has no width, which means too few votes, not certainty.

    Raises:
        ValueError: there are no votes, or something else than votes.
    """
    pairs: dict[tuple[str, str], list[Vote]] = {}
    for vote in _some(votes):
        pairs.setdefault(vote.pair, []).append(vote)
    rows = []
    for (system, against), some in sorted(pairs.items()):
        counted = Counter(vote.preferred if vote.winner != "tie" else None for vote in some)
        points = np.array(
            [0.5 if vote.winner == "tie" else float(vote.preferred == system) for vote in some]
        )
        questions = _by_question(some)
        draws = _draws(questions, resamples, seed)
        drawn = draws @ np.bincount(questions, points) / (draws @ np.bincount(questions))
        low, high = _interval(drawn)
        rows.append(
            {
                "system": system,
                "against": against,
                "votes": len(some),
                "wins": counted[system],
                "ties": counted[None],
                "losses": counted[against],
                "win_rate": points.mean(),
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def _verdicts(name: str, given: Sequence[str | None]) -> list[str | None]:
    found = checks.items(name, given, "verdicts")
    for verdict in found:
        if verdict is not None:
            checks.text(f"a verdict in {name}", verdict)
    return found


def krippendorff_alpha(verdicts_a: Sequence[str | None], verdicts_b: Sequence[str | None]) -> float:
    """Compute Krippendorff's alpha of two lists of verdicts: 1 if all are equal, 0 for chance.

    Computed by evalica, for nominal values. Source: Krippendorff, Content Analysis (4th edition
    2018), chapter 12.

    Args:
        verdicts_a, verdicts_b: two verdicts on each case; None for a missing verdict.

    Returns:
        Alpha, which can be negative, or NaN if it is undefined: if no case has two verdicts, or if
        only one verdict occurs, so that agreement by chance would be perfect too.

    Raises:
        ValueError: the lists have different lengths.
    """
    verdicts_a = _verdicts("verdicts_a", verdicts_a)
    verdicts_b = _verdicts("verdicts_b", verdicts_b)
    if len(verdicts_a) != len(verdicts_b):
        sizes = f"{len(verdicts_a)} and {len(verdicts_b)}"
        raise BadValue(
            f"verdicts_a and verdicts_b have {sizes} verdicts; it takes as many of each."
        )
    both = [v for v in zip(verdicts_a, verdicts_b, strict=True) if None not in v]
    codes = {
        verdict: float(code) for code, verdict in enumerate(sorted({v for p in both for v in p}))
    }
    if len(codes) < 2:
        return math.nan
    return evalica.alpha(
        pd.DataFrame([[codes[v] for v in side] for side in zip(*both, strict=True)])
    ).alpha


@dataclass(frozen=True)
class VoterAgreement:
    """How far two voters agree, see `voter_agreement`.

    Attributes:
        pairs: the number of pairs that both voted on.
        equal: the share of those, 0 to 1, with equal verdicts.
        alpha: Krippendorff's alpha, which corrects for agreement by chance.
    """

    pairs: int
    equal: float
    alpha: float


def voter_agreement(votes_a: Iterable[Vote], votes_b: Iterable[Vote]) -> VoterAgreement:
    """Measure how far two voters, such as a person and a judge, agree on pairs both voted on.

    Verdicts are compared by the winning system, whichever side it was on. If all votes record their
    answers, votes on different answers belong to different pairs. For alpha, the verdicts are the
    systems' names and "tie".

    Args:
        votes_a, votes_b: the votes of one voter each, such as `votes.by("me")`.

    Raises:
        ValueError: there are no votes, something else than votes, two votes on the same pair in one
            list, or no pair that both voted on.
    """
    sides = [_some(votes_a, "votes_a"), _some(votes_b, "votes_b")]
    with_answers = all(vote.answers for side in sides for vote in side)
    given: list[dict[tuple, str]] = [{}, {}]
    for side, votes in zip(given, sides, strict=True):
        for vote in votes:
            key = (vote.question, vote.pair, vote.answers if with_answers else "")
            if key in side:
                raise ValueError(
                    f"One list has two votes on {' and '.join(vote.pair)} for {vote.question!r}; "
                    'give one voter\'s votes, such as `votes.by("me")`.'
                )
            # A system may also be called "tie".
            side[key] = "tie" if vote.winner == "tie" else f"system {vote.preferred}"
    common = [key for key in given[0] if key in given[1]]
    if not common:
        raise ValueError(
            f"The {len(sides[0])} and {len(sides[1])} votes have no pair in common: no question "
            "with the same two systems" + (" and answers." if with_answers else ".")
        )
    a, b = ([side[key] for key in common] for side in given)
    return VoterAgreement(
        len(common),
        sum(x == y for x, y in zip(a, b, strict=True)) / len(common),
        krippendorff_alpha(a, b),
    )
