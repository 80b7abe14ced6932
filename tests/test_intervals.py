"""Intervals, the paired test, the items needed: against scipy, R's examples and simulations."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from course_utils.scoring import bootstrap_interval, items_needed, paired_test
from course_utils.scoring._intervals import BCA, EXACT, NONE, PERCENTILE

RIGHT = [1] * 30 + [0] * 20


def test_an_interval_is_scipys_own() -> None:
    """The same resampling by hand gives the same ends, for a statistic of one's own too."""
    scores = np.random.default_rng(1).normal(size=40)
    by_hand = stats.bootstrap(
        (scores,), np.mean, confidence_level=0.9, random_state=np.random.default_rng(7)
    ).confidence_interval
    found = bootstrap_interval(scores, confidence=0.9, seed=7)
    assert (found.low, found.high) == pytest.approx(tuple(by_hand))
    assert (found.value, found.n, found.method) == (pytest.approx(scores.mean()), 40, BCA)
    assert bootstrap_interval(scores, np.mean, 0.9, 7) == found


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of 300 samples of 60 answers, about 95 in 100 intervals hold the true share."""
    draw = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        found = bootstrap_interval(draw.random(60) < 0.7, seed=seed)
        held += found.low <= 0.7 <= found.high
    assert 0.91 <= held / 300 <= 0.98


@pytest.mark.parametrize("answer", [0, 1])
def test_all_right_or_all_wrong_is_not_certain(answer: int) -> None:
    """The exact interval: with no wrong answer among n, up to 1 - (0.025)^(1/n) may be wrong."""
    found = bootstrap_interval([answer] * 20)
    wide = 1 - 0.025 ** (1 / 20)
    assert found.method == EXACT
    assert (found.low, found.high) == pytest.approx((1 - wide, 1) if answer else (0, wide))
    assert bootstrap_interval([answer]).method == EXACT


def test_where_there_is_no_interval_it_says_so() -> None:
    """Equal values that are no shares; and a median of 0/1 values, whose exact interval is none."""
    found = bootstrap_interval([3, 3, 3])
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.method == NONE
    assert "no interval" in str(found)
    assert bootstrap_interval([1, 1, 1], "median").method == NONE


def test_where_bca_fails_the_percentiles_remain() -> None:
    """A median that no single value can move has no acceleration; BCa gives NaN."""
    found = bootstrap_interval([1] * 8 + [2, 3, 50], "median")
    assert found.method == PERCENTILE
    assert found.low <= found.value == 1 <= found.high


def test_an_interval_leaves_the_random_state_alone() -> None:
    """And is the same for the same seed."""
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    scores = [math.sqrt(n) for n in range(20)]
    first = bootstrap_interval(scores, seed=5)
    assert first == bootstrap_interval(scores, seed=5) != bootstrap_interval(scores, seed=6)
    assert (np.random.get_state()[1] == before).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=12))
def test_any_scores_have_an_ordered_interval_or_none(scores: list[float]) -> None:
    """Nothing crashes, and an interval lies within the values."""
    found = bootstrap_interval(scores)
    if math.isnan(found.low):
        assert len(set(scores)) == 1
    else:
        slack = 1e-6
        assert min(*scores, 0) - slack <= found.low <= found.high <= max(*scores, 1) + slack
    assert str(found)


def mcnemar(wins: int, losses: int) -> float:
    """McNemar's exact test, as a sign test of the items that differ."""
    return stats.binomtest(wins, wins + losses, 0.5).pvalue


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (5, 5), (9, 1), (3, 10), (0, 8), (7, 6)])
def test_on_right_and_wrong_it_is_mcnemars_exact_test(wins: int, losses: int) -> None:
    """With few items that differ, to the last digit; ties, in any number, change nothing."""
    a = [1] * wins + [0] * losses + [1, 0, 1] * 20
    b = [0] * wins + [1] * losses + [1, 0, 1] * 20
    found = paired_test(a, b)
    assert found.exact
    assert found.p_value == pytest.approx(mcnemar(wins, losses))
    assert (found.wins, found.losses, found.ties, found.n) == (wins, losses, 60, len(a))
    assert found.difference.value == pytest.approx((wins - losses) / len(a))


@pytest.mark.parametrize(("items", "exact"), [(13, True), (14, False)])
def test_exact_as_long_as_all_swaps_can_be_counted(items: int, exact: bool) -> None:
    """2^13 = 8,192 of them are counted, 2^14 = 16,384 are not."""
    found = paired_test([1] * (items - 2) + [0, 0, 1], [0] * (items - 2) + [1, 1, 1])
    assert found.exact is exact
    # A sample cannot hit the exact value: it has 10,000 in the denominator.
    assert (abs(found.p_value - mcnemar(items - 2, 2)) < 1e-9) == exact


def test_with_many_items_it_is_mcnemars_within_monte_carlo_error() -> None:
    """9,999 permutations know a p-value of about 0.03 to a few thousandths."""
    wins, losses = 60, 38
    found = paired_test([1] * wins + [0] * losses, [0] * wins + [1] * losses)
    p = mcnemar(wins, losses)
    error = math.sqrt(p * (1 - p) / 9999)
    assert not found.exact
    assert 0.02 < p < 0.05
    assert found.p_value == pytest.approx(p, abs=5 * error)


def test_it_is_scipys_permutation_test_for_scores_of_any_kind() -> None:
    """Without ties the exact p-value is that of all 2^8 swaps."""
    draw = np.random.default_rng(2)
    a, b = draw.normal(0.8, 1, 8), draw.normal(0, 1, 8)
    all_swaps = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert paired_test(a, b).p_value == pytest.approx(all_swaps.pvalue)


def test_the_p_value_is_small_as_often_as_it_may_be() -> None:
    """Between systems that are alike, at most about 5 in 100 tests find a difference at 0.05."""
    draw = random.Random(0)
    found = 0
    for _ in range(200):
        a = [draw.random() < 0.6 for _ in range(30)]
        b = [draw.random() < 0.6 for _ in range(30)]
        found += paired_test(a, b).p_value < 0.05
    assert found <= 200 * 0.1


def test_systems_that_never_differ_may_still_differ() -> None:
    """Ten equal answers leave room for a difference of 0.3; ten opposite ones prove no 1."""
    same = paired_test([1, 0] * 5, [1, 0] * 5)
    room = 1 - 0.025 ** (1 / 10)
    assert same.p_value == 1
    assert (same.difference.low, same.difference.high) == pytest.approx((-room, room))
    opposite = paired_test([1] * 10, [0] * 10)
    assert (opposite.difference.low, opposite.difference.high) == pytest.approx((1 - 2 * room, 1))
    # Scores of any kind that never differ are no shares: there is no interval.
    graded = paired_test([0.5, 0.7], [0.5, 0.7])
    assert math.isnan(graded.difference.low)
    assert "no interval" in str(graded)


def test_turning_the_systems_round_turns_the_result_round() -> None:
    """Wins become losses, and the p-value stays."""
    a, b = [1, 1, 1, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 1, 0, 1]
    one, other = paired_test(a, b), paired_test(b, a)
    assert (one.wins, one.losses) == (other.losses, other.wins)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.difference.value == -other.difference.value
    assert "4 wins, 1 losses, 3 ties on 8 items" in str(one)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bootstrap_interval([]), "shape"),
        (lambda: bootstrap_interval([0.3]), r"0\.3 alone"),
        (lambda: bootstrap_interval("0110"), "is a text"),
        (lambda: bootstrap_interval(["right", "wrong"]), "no number"),
        (lambda: bootstrap_interval([1, math.nan]), "nan at place 1"),
        (lambda: bootstrap_interval([[1, 0], [0, 1]]), "shape"),
        (lambda: bootstrap_interval(RIGHT, "mode"), "'mode'. It has to be 'mean', 'median'"),
        (lambda: bootstrap_interval(RIGHT, confidence=95), "confidence is 95"),
        (lambda: paired_test([1, 0], [1]), "a has 2 scores and b has 1"),
        (lambda: paired_test([], []), "shape"),
        (lambda: paired_test([1, 1], [1, 1], confidence=1), "confidence is 1"),
        (lambda: items_needed(0, 0.5), "difference is 0"),
        (lambda: items_needed(0.1, 0.95), r"give 1\.05"),
        (lambda: items_needed(0.1, 0.5, power=80), "power is 80"),
        (lambda: items_needed(0.1, 0.8, disagreement=0.05), r"disagree on 0\.1 to 0\.3"),
        (lambda: items_needed(0.1, 0.8, disagreement=0.5), r"disagree on 0\.1 to 0\.3"),
    ],
)
def test_bad_input(call, said: str) -> None:
    """The error names what was given and what is possible."""
    with pytest.raises(ValueError, match=said):
        call()


def test_items_for_systems_with_items_of_their_own() -> None:
    """R's documented example: power.prop.test(p1 = .50, p2 = .75, power = .90) gives 76.7."""
    assert items_needed(0.25, 0.5, 0.9).items == 77
    assert items_needed(-0.25, 0.75, 0.9).items == 77


def test_items_for_systems_on_the_same_items() -> None:
    """Connor's formula at 0.45 and 0.05 discordant, as sample size calculators have it: 23."""
    assert items_needed(0.4, 0.3, disagreement=0.5).items == 23


@pytest.mark.parametrize("disagreement", [None, 0.12, 0.3])
def test_so_many_items_do_show_the_difference(disagreement: float | None) -> None:
    """In 4,000 simulated comparisons, a normal test finds it about as often as promised."""
    share, difference, power = 0.7, 0.08, 0.8
    n = items_needed(difference, share, power, disagreement=disagreement).items
    draw = np.random.default_rng(0)
    if disagreement is None:
        p = draw.binomial(n, share, 4000) / n
        q = draw.binomial(n, share + difference, 4000) / n
        mean = (p + q) / 2
        z = (q - p) / np.sqrt(2 * mean * (1 - mean) / n)
    else:
        wins, losses = (disagreement + difference) / 2, (disagreement - difference) / 2
        w, lost, _ = draw.multinomial(n, [wins, losses, 1 - disagreement], 4000).T
        z = (w - lost) / np.sqrt(w + lost)
    assert (abs(z) > stats.norm.ppf(0.975)).mean() == pytest.approx(power, abs=0.03)


def test_the_same_items_need_fewer() -> None:
    """As many as separate ones only where the systems differ as if by chance."""
    separate = items_needed(0.05, 0.7).items
    by_chance = 0.7 * 0.25 + 0.3 * 0.75
    assert items_needed(0.05, 0.7, disagreement=0.15).items < separate / 2
    # Each of them is asked of both systems.
    assert items_needed(0.05, 0.7, disagreement=by_chance).items == pytest.approx(separate, rel=0.1)
    assert items_needed(0.025, 0.7).items > 3 * separate
    assert str(items_needed(0.05, 0.7)).startswith(f"{separate:,} items for each system")


def test_what_it_takes_at_the_ends() -> None:
    """Shares of 0 and 1 are possible, though their sum misses 1 by a hair in binary."""
    assert items_needed(0.1, 0.9).items == items_needed(-0.1, 0.1).items
    assert items_needed(0.3, 0.7, disagreement=0.3).items > 0


def test_what_the_results_say() -> None:
    """In words: the level in percent, and how the items are asked."""
    assert "95%" in str(paired_test([1, 0, 1, 1], [0, 0, 1, 0]))
    assert "asked of both systems, if they disagree on 30%" in str(
        items_needed(0.1, 0.5, disagreement=0.3)
    )
    assert "each is asked items of its own" in str(items_needed(0.1, 0.5))
    assert bootstrap_interval([1, 1], "median", confidence=0.9).confidence == 0.9


def test_a_paired_test_is_at_its_own_level_and_the_same_each_time() -> None:
    """The level reaches the interval; a sample of swaps is drawn from the seed alone."""
    a, b = [1, 0, 1, 1, 0, 1] * 9, [0, 0, 1, 0, 1, 1] * 9
    wide, narrow = paired_test(a, b, confidence=0.99), paired_test(a, b, confidence=0.5)
    assert (wide.difference.confidence, narrow.difference.confidence) == (0.99, 0.5)
    assert wide.difference.low < narrow.difference.low < narrow.difference.high
    assert f"p = {wide.p_value:.2g}" in str(wide)
    scores = [[0.1 * (i * k % 7) for i in range(40)] for k in (1, 2)]
    once, again = (paired_test(*scores, seed=3) for _ in range(2))
    assert not once.exact
    assert once.p_value == again.p_value
    equal = paired_test([3.5, 2.5, 1.5], [3, 2, 1]).difference
    assert [math.isnan(end) for end in (equal.low, equal.high)] == [True, True]
    assert bootstrap_interval([2, 2, 2]).n == 3
