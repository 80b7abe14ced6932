"""How sure a score is: intervals, a paired comparison, and how many items a comparison needs.

Thin functions on top of scipy. Introduced in notebook 08.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from course_utils._core import checks

# In batches of so many numbers at most: with thousands of items, all resamples at once would take
# gigabytes.
_NUMBERS_AT_ONCE = 2_000_000
_RESAMPLES = 9999
# A hundred billion items would be needed for it.
_SMALLEST = 1e-5
_STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}

BCA = "BCa bootstrap"
PERCENTILE = "percentile bootstrap"
EXACT = "exact (Clopper-Pearson)"
NONE = "none: all values are equal"


@dataclass(frozen=True)
class Interval:
    """A statistic of some values, with a confidence interval.

    Attributes:
        value: the statistic of the values as they are.
        low, high: the ends of the interval, in the values' own unit; NaN where there is none.
        confidence: of the interval, 0 to 1.
        n: the number of values.
        method: how the interval was found, or why there is none.
    """

    value: float
    low: float
    high: float
    confidence: float
    n: int
    method: str

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3g} (n = {self.n}; no interval, as all values are equal)"
        level = f"{100 * self.confidence:.3g}%"
        return (
            f"{self.value:.3g}, {level} interval {self.low:.3g} to {self.high:.3g} "
            f"(n = {self.n}, {self.method})"
        )


@dataclass(frozen=True)
class PairedTest:
    """Two systems compared on the same items.

    Attributes:
        difference: the mean of the first system's scores less the second's, with its interval.
        p_value: how often chance alone would give a difference as large, in either direction.
        wins, losses, ties: items on which the first scores higher, lower, the same.
        exact: whether all permutations were counted, rather than a sample of them.
    """

    difference: Interval
    p_value: float
    wins: int
    losses: int
    ties: int
    exact: bool

    @property
    def n(self) -> int:
        """The number of items."""
        return self.wins + self.losses + self.ties

    def __str__(self) -> str:
        found = self.difference
        if math.isnan(found.low):
            interval = "no interval, as all differences are equal"
        else:
            level = f"{100 * found.confidence:.3g}%"
            interval = f"{level} interval {found.low:+.3g} to {found.high:+.3g}"
        # A sample of permutations cannot tell p-values below its own grain apart.
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.2g}"
        return (
            f"difference {found.value:+.3g}, {interval}; {p}; {self.wins} wins, "
            f"{self.losses} losses, {self.ties} ties on {self.n} items"
        )


@dataclass(frozen=True)
class ItemsNeeded:
    """The answer of `items_needed`.

    Attributes:
        items: how many items each system has to be asked.
        difference, share, power, confidence, disagreement: as they were given.
    """

    items: int
    difference: float
    share: float
    power: float
    confidence: float
    disagreement: float | None

    def __str__(self) -> str:
        if self.disagreement is None:
            how = "for each system, if each is asked items of its own"
        else:
            how = f"asked of both systems, if they disagree on {self.disagreement:.0%} of them"
        return (
            f"{self.items:,} items {how}, to tell {self.share:.0%} from "
            f"{self.share + self.difference:.0%} in {self.power:.0%} of all such comparisons "
            f"(at {1 - self.confidence:.2g} significance)"
        )


def _numbers(values: Iterable[float], what: str) -> np.ndarray:
    """Values as a row of finite floats."""
    if isinstance(values, str):
        raise ValueError(f"{what} is a text; numbers are needed, one for each item.")
    try:
        found = np.asarray(checks.items(what, values, "numbers"))
        # A score is no text, and a missing one is no NaN.
        if found.dtype.kind not in "biuf" and found.size:
            raise TypeError
        found = found.astype(float)
    except (TypeError, OverflowError):
        raise ValueError(f"{what} holds something that is no number; one for each item.") from None
    except ValueError as error:  # lists of unequal length in it, or no list at all
        if isinstance(error, checks.BadValue):
            raise
        raise ValueError(f"{what} holds something that is no number; one for each item.") from None
    if found.ndim != 1 or not found.size:
        raise ValueError(
            f"{what} has the shape {found.shape}; it takes one number for each item, "
            "and one item at least."
        )
    if not np.isfinite(found).all():
        where = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(f"{what} holds {found[where]} at place {where}; finite numbers only.")
    return found


def _share_between(name: str, given: float) -> float:
    return float(checks.number(name, given, above=0, below=1))


def bootstrap_interval(
    values: Iterable[float],
    statistic: str | Callable[..., Any] = "mean",
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A confidence interval for a statistic of scores, one for each item.

    The BCa bootstrap (`scipy.stats.bootstrap`, 9,999 resamples). Source: Efron, "Better bootstrap
    confidence intervals", Journal of the American Statistical Association 82 (1987).

    It has nothing to resample where all values are equal, so there the method is another:
    for a mean of 0/1 values, all 0 or all 1, the exact interval of a share (Clopper and Pearson,
    Biometrika 26, 1934; by `scipy.stats.binomtest`), which is why 20 right answers of 20 do not
    prove a share of 1; for any other equal values, none. Where BCa alone fails, as it can for a
    median, it is the percentile bootstrap. `method` of the result says which.

    With fewer than about 50 items the bootstrap's intervals tend to be too short. Source: Bowyer
    and others, "Don't use the CLT in LLM evals with fewer than a few hundred datapoints"
    (arXiv 2503.01747).

    Args:
        values: scores, one for each item.
        statistic: "mean", "median", or a function of an array with the argument `axis`.
        confidence: of the interval, more than 0 and less than 1.
        seed: of the resampling; the random state outside stays as it was.

    Raises:
        ValueError: no values, one alone (0 and 1 apart), not finite numbers, or another statistic
            or confidence than is possible.
    """
    numbers = _numbers(values, "values")
    confidence = _share_between("confidence", confidence)
    checks.whole("seed", seed, least=0, most=2**32 - 1)
    if isinstance(statistic, str) and statistic in _STATISTICS:
        function = _STATISTICS[statistic]
    elif callable(statistic):
        function = statistic
    else:
        possible = f"{', '.join(map(repr, _STATISTICS))} or a function of an array and its axis"
        raise checks.refuse("statistic", statistic, possible)
    try:
        value = float(function(numbers, axis=0))
    except Exception as error:
        raise ValueError(
            f"statistic is {checks.shown(statistic)}. It has to take an array and axis=, and to "
            f"give a number; it failed with {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if (numbers == numbers[0]).all():
        if statistic == "mean" and numbers[0] in (0, 1):
            right = stats.binomtest(int(numbers.sum()), numbers.size)
            exact = right.proportion_ci(confidence, method="exact")
            return Interval(value, exact.low, exact.high, confidence, numbers.size, EXACT)
        if numbers.size == 1:
            raise ValueError(f"values holds {numbers[0]:g} alone; an interval takes two at least.")
        return Interval(value, math.nan, math.nan, confidence, numbers.size, NONE)
    low, high, method = _bootstrap(numbers, function, confidence, seed)
    return Interval(value, low, high, confidence, numbers.size, method)


def _bootstrap(
    numbers: np.ndarray, function: Callable[..., Any], confidence: float, seed: int
) -> tuple[float, float, str]:
    """The ends of the interval, and which bootstrap gave them."""

    def ends(method: str) -> tuple[float, float]:
        found = stats.bootstrap(
            (numbers,),
            function,
            n_resamples=_RESAMPLES,
            batch=max(1, _NUMBERS_AT_ONCE // numbers.size),
            vectorized=True,
            confidence_level=confidence,
            method=method,
            # `rng=` is its name from scipy 1.15 on; this one works with all.
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    with warnings.catch_warnings():
        # scipy warns where BCa has failed; we see it by the NaN, and have another method.
        warnings.simplefilter("ignore")
        low, high = ends("BCa")
        if math.isfinite(low) and math.isfinite(high):
            return low, high, BCA
        return *ends("percentile"), PERCENTILE


def paired_test(
    a: Iterable[float], b: Iterable[float], confidence: float = 0.95, seed: int = 0
) -> PairedTest:
    """Whether one system scores higher than another on the same items.

    The p-value is that of a paired permutation test (`scipy.stats.permutation_test`, "samples"):
    if the systems were alike, each item's two scores could as well have been swapped. All ways to
    swap are counted where there are at most 9,999 of them, else as many are drawn. For 0/1 scores
    this is McNemar's exact test. Sources: Fisher, "The Design of Experiments" (1935); McNemar,
    Psychometrika 12 (1947); for language models Dror and others, "The hitchhiker's guide to testing
    statistical significance in natural language processing" (ACL 2018).

    The interval is `bootstrap_interval` of the differences. Where these are all equal, as between
    two systems of 0/1 scores that never differ, the interval is an exact and careful one: with
    the given confidence at least a share L of all items has this difference (Clopper-Pearson),
    and the others may have any. For other equal differences there is none.

    Args:
        a: scores of the first system, one for each item.
        b: scores of the second, for the same items in the same order.
        confidence: of the difference's interval, more than 0 and less than 1.
        seed: of both resamplings; the random state outside stays as it was.

    Raises:
        ValueError: lists that differ in length, are empty, or hold something but finite numbers.
    """
    first, second = _numbers(a, "a"), _numbers(b, "b")
    if first.size != second.size:
        raise ValueError(
            f"a has {first.size} scores and b has {second.size}; a paired test compares the same "
            "items, so it takes as many of each."
        )
    differences = first - second
    value = float(differences.mean())
    confidence = _share_between("confidence", confidence)
    checks.whole("seed", seed, least=0, most=2**32 - 1)
    if (differences != differences[0]).any():
        interval = bootstrap_interval(differences, confidence=confidence, seed=seed)
    elif np.isin([first, second], (0, 1)).all():
        agreeing = stats.binomtest(first.size, first.size).proportion_ci(confidence, "exact").low
        low, high = (float(agreeing * value + (1 - agreeing) * end) for end in (-1, 1))
        interval = Interval(value, low, high, confidence, first.size, EXACT)
    else:
        interval = Interval(value, math.nan, math.nan, confidence, first.size, NONE)

    # Swapping equal scores changes nothing. Without them, far more tests can be counted out.
    differ = differences != 0
    items = int(differ.sum())
    p_value = 1.0  # also of one item alone: one way to swap it is as far off as the other
    if items > 1:
        p_value = float(
            stats.permutation_test(
                (first[differ], second[differ]),
                lambda x, y, axis: np.sum(x - y, axis=axis),
                permutation_type="samples",
                vectorized=True,
                n_resamples=_RESAMPLES,
                batch=max(1, _NUMBERS_AT_ONCE // items),
                random_state=np.random.default_rng(seed),
            ).pvalue
        )
    return PairedTest(
        difference=interval,
        p_value=p_value,
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        exact=items <= math.log2(_RESAMPLES),
    )


def items_needed(
    difference: float,
    share: float,
    power: float = 0.8,
    *,
    confidence: float = 0.95,
    disagreement: float | None = None,
) -> ItemsNeeded:
    """How many test items it takes to see a difference between two shares of right answers.

    Where each system is asked items of its own, the formula for two independent shares p and q with
    mean m: n = (z_a √(2 m (1 - m)) + z_b √(p (1 - p) + q (1 - q)))² / (p - q)², with the normal
    quantiles z_a of the confidence (two-sided) and z_b of the power. Source: Fleiss, Levin and
    Paik, "Statistical Methods for Rates and Proportions", 3rd edition (2003), chapter 4, without
    its correction for continuity; R's `power.prop.test` is the same.

    Where both are asked the same items, only those count on which exactly one is right, a share d
    of all: n = (z_a √d + z_b √(d - (p - q)²))² / (p - q)². Source: Connor, "Sample size for testing
    differences in proportions for the paired-sample design", Biometrics 43 (1987). For scores in
    general see Miller, "Adding error bars to evals" (arXiv 2411.00640), section 5.

    Args:
        difference: what shall be seen, as a difference of shares: 0.05 is five points. It may be
            negative.
        share: the right answers of the system that it is compared with, 0 to 1.
        power: in what share of such comparisons the difference, if there is one, shall be found.
        confidence: 1 less the significance level of the test.
        disagreement: for the same items: the share of them on which exactly one system is right.

    Raises:
        ValueError: no difference, a share outside 0 to 1, or a disagreement that these shares
            cannot have.
    """
    power, confidence = _share_between("power", power), _share_between("confidence", confidence)
    checks.number("difference", difference)
    checks.number("share", share)
    if disagreement is not None:
        checks.number("disagreement", disagreement)
    other = share + difference
    # Sums of decimal fractions miss 0 and 1 by a hair.
    other = round(other, 12)
    if not (0 <= share <= 1 and 0 <= other <= 1):
        raise ValueError(
            f"A share of {share:g} and a difference of {difference:g} give {other:g}; "
            "shares from 0 to 1 are possible."
        )
    if abs(difference) < _SMALLEST:
        raise ValueError(
            f"difference is {difference:g}; no test has enough items to show what is below "
            f"{_SMALLEST:g}."
        )
    z_a, z_b = stats.norm.ppf((1 + confidence) / 2), stats.norm.ppf(power)
    if disagreement is None:
        mean = (share + other) / 2
        spread_if_alike = 2 * mean * (1 - mean)
        spread = share * (1 - share) + other * (1 - other)
    else:
        least, most = abs(difference), min(share + other, 2 - share - other)
        if not least - 1e-9 <= disagreement <= most + 1e-9:
            raise ValueError(
                f"disagreement is {disagreement:g}; systems with {share:g} and {other:g} right "
                f"answers disagree on {least:g} to {most:g} of the items."
            )
        spread_if_alike = disagreement
        spread = max(0.0, disagreement - difference**2)
    root = z_a * math.sqrt(spread_if_alike) + z_b * math.sqrt(spread)
    return ItemsNeeded(
        items=math.ceil((root / difference) ** 2),
        difference=difference,
        share=share,
        power=power,
        confidence=confidence,
        disagreement=disagreement,
    )
