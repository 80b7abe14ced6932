"""Confidence intervals for scores, a paired test, and the number of items a comparison needs.

Thin wrappers around scipy. Introduced in notebook 08.
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

# The largest batch, in numbers: with thousands of items, all resamples at once would take
# gigabytes.
_NUMBERS_AT_ONCE = 2_000_000
_RESAMPLES = 9999
# Detecting it would take a hundred billion items.
_SMALLEST = 1e-5
_STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}

BCA = "BCa bootstrap"
PERCENTILE = "percentile bootstrap"
EXACT = "exact (Clopper-Pearson)"
NONE = "none: all values are equal"


@dataclass(frozen=True)
class Interval:
    """A statistic with its confidence interval.

    Attributes:
        value: the statistic of the original values.
        low, high: the ends of the interval, in the unit of the values; NaN if there is none.
        confidence: the confidence level of the interval, 0 to 1.
        n: the number of values.
        method: how the interval was computed, or why there is none.
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
    """The comparison of two systems on the same items.

    Attributes:
        difference: the mean difference of the scores, first minus second, with its interval.
        p_value: the probability of a difference at least as large, in either direction, by chance.
        wins, losses, ties: items on which the first system scores higher, lower, the same.
        exact: whether all permutations were counted rather than a sample of them.
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
        # A sample of permutations cannot resolve smaller p-values.
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.2g}"
        return (
            f"difference {found.value:+.3g}, {interval}; {p}; {self.wins} wins, "
            f"{self.losses} losses, {self.ties} ties on {self.n} items"
        )


@dataclass(frozen=True)
class ItemsNeeded:
    """The result of `items_needed`.

    Attributes:
        items: the number of items for each system.
        difference, share, power, confidence, disagreement: the arguments.
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
    """Convert values to a one-dimensional array of finite floats."""
    if isinstance(values, str):
        raise ValueError(f"{what} is a text; numbers are needed, one for each item.")
    try:
        found = np.asarray(checks.items(what, values, "numbers"))
        # A score is not a string, and a missing score is not NaN.
        if found.dtype.kind not in "biuf" and found.size:
            raise TypeError
        found = found.astype(float)
    except (TypeError, OverflowError):
        raise ValueError(f"{what} holds something that is no number; one for each item.") from None
    except ValueError as error:  # it contains lists of unequal length, or is not a list
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
    """Compute a confidence interval for a statistic of per-item scores.

    The method is the BCa bootstrap (`scipy.stats.bootstrap`, 9,999 resamples). Source: Efron,
    "Better bootstrap confidence intervals", Journal of the American Statistical Association 82
    (1987).

    The bootstrap does not work if all values are equal. Then, for a mean of values that are all 0
    or all 1, the interval is the exact one of a proportion (Clopper and Pearson, Biometrika 26,
    1934; via `scipy.stats.binomtest`), which is why 20 right answers out of 20 do not prove a share
    of 1; for other equal values there is none. If only BCa fails, as it can for a median, the
    percentile bootstrap is used. The result's `method` says which.

    With fewer than about 50 items, bootstrap intervals tend to be too short. Source: Bowyer et al.,
    "Don't use the CLT in LLM evals with fewer than a few hundred datapoints" (arXiv 2503.01747).

    Args:
        values: scores, one per item.
        statistic: "mean", "median", or a function of an array with an argument `axis`.
        confidence: the confidence level, above 0 and below 1.
        seed: the seed for resampling; the global random state is left unchanged.

    Raises:
        ValueError: there are no values, there is only one (other than 0 or 1), a value is not a
            finite number, or the statistic or confidence is invalid.
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
    """Return the ends of the interval, and which bootstrap they are from."""

    def ends(method: str) -> tuple[float, float]:
        found = stats.bootstrap(
            (numbers,),
            function,
            n_resamples=_RESAMPLES,
            batch=max(1, _NUMBERS_AT_ONCE // numbers.size),
            vectorized=True,
            confidence_level=confidence,
            method=method,
            # From scipy 1.15 on it is called `rng`; this name works with all versions.
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    with warnings.catch_warnings():
        # scipy warns if BCa fails; we detect it by the NaN, and use another method.
        warnings.simplefilter("ignore")
        low, high = ends("BCa")
        if math.isfinite(low) and math.isfinite(high):
            return low, high, BCA
        return *ends("percentile"), PERCENTILE


def paired_test(
    a: Iterable[float], b: Iterable[float], confidence: float = 0.95, seed: int = 0
) -> PairedTest:
    """Test whether one system scores higher than another on the same items.

    The p-value is that of a paired permutation test (`scipy.stats.permutation_test`, "samples"):
    if the systems were equally good, each item's two scores could just as well be swapped. If there
    are at most 9,999 ways to swap, all are counted, else as many are sampled. For 0/1 scores this
    is McNemar's exact test. Sources: Fisher, "The Design of Experiments" (1935); McNemar,
    Psychometrika 12 (1947); for language models Dror et al., "The hitchhiker's guide to testing
    statistical significance in natural language processing" (ACL 2018).

    The interval is `bootstrap_interval` of the differences. If all differences of 0/1 scores are
    equal, as between two systems that never differ, the interval is exact and conservative: with
    the given confidence, at least a share L of all items has this difference (Clopper-Pearson), and
    the others may have any. For other equal differences there is none.

    Args:
        a: scores of the first system, one per item.
        b: scores of the second, for the same items in the same order.
        confidence: the confidence level of the interval, above 0 and below 1.
        seed: the seed for both kinds of resampling; the global random state is left unchanged.

    Raises:
        ValueError: the lists differ in length, are empty, or contain anything but finite numbers.
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

    # Swapping equal scores changes nothing. Without them, far more tests can be exact.
    differ = differences != 0
    items = int(differ.sum())
    p_value = 1.0  # also for a single item: swapped or not, the difference is as large
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
    """Compute how many test items are needed to detect a difference between two accuracies.

    If each system is asked different items, the formula for two independent shares p and q with
    mean m applies: n = (z_a √(2 m (1 - m)) + z_b √(p (1 - p) + q (1 - q)))² / (p - q)², with the
    normal quantiles z_a of the confidence (two-sided) and z_b of the power. Source: Fleiss, Levin
    and Paik, "Statistical Methods for Rates and Proportions", 3rd edition (2003), chapter 4,
    without the continuity correction; R's `power.prop.test` uses the same formula.

    If both are asked the same items, only those count on which exactly one is right, a share d of
    all: n = (z_a √d + z_b √(d - (p - q)²))² / (p - q)². Source: Connor, "Sample size for testing
    differences in proportions for the paired-sample design", Biometrics 43 (1987). For scores in
    general, see Miller, "Adding error bars to evals" (arXiv 2411.00640), section 5.

    Args:
        difference: the difference to detect, as a share: 0.05 is five percentage points. It may be
            negative.
        share: the accuracy of the other system, 0 to 1.
        power: the probability of detecting the difference if it exists.
        confidence: 1 minus the significance level of the test.
        disagreement: if both are asked the same items, the share on which exactly one is right.

    Raises:
        ValueError: the difference is 0, a share is outside 0 to 1, or the disagreement is
            impossible for these shares.
    """
    power, confidence = _share_between("power", power), _share_between("confidence", confidence)
    checks.number("difference", difference)
    checks.number("share", share)
    if disagreement is not None:
        checks.number("disagreement", disagreement)
    other = share + difference
    # Sums of decimal fractions can miss 0 and 1 slightly.
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
