"""Intervals, pass@k and paired tests, against numbers worked out by hand and against the truth by simulation."""

import itertools
import math

import numpy as np
import pytest
from posttrain.evaluation.statistics import compare_paired, mean_interval, pass_at_k


@pytest.mark.parametrize(
    ("samples", "right", "k", "wanted"),
    [(5, 2, 1, 0.4), (5, 2, 2, 0.7), (5, 2, 4, 1.0), (5, 0, 3, 0.0), (1, 1, 1, 1.0)],
)
def test_pass_at_k_by_hand(samples, right, k, wanted):
    """1 - C(n - c, k) / C(n, k): of five answers with two right, 1 - 3/10 for two."""
    assert pass_at_k(samples, right, k) == pytest.approx(wanted, abs=1e-5)


def test_pass_at_k_is_the_share_of_all_subsets():
    answers = [1, 0, 0, 1, 0, 0, 1]
    for k in range(1, 8):
        subsets = list(itertools.combinations(answers, k))
        assert pass_at_k(7, 3, k) == pytest.approx(sum(any(one) for one in subsets) / len(subsets))


@pytest.mark.parametrize("k", [0, 4])
def test_k_that_cannot_be(k):
    with pytest.raises(ValueError, match=r"expected 1 to the number of samples, 3"):
        pass_at_k(3, 1, k)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)]
)
def test_right_or_wrong_gets_wilsons_interval(right, count, low, high):
    """Figures of Newcombe 1998, table I's method 3, and of any calculator of the score interval."""
    found = mean_interval([1.0] * right + [0.0] * (count - right))
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))


@pytest.mark.parametrize("kind", ["skewed", "shares", "right or wrong"])
def test_intervals_hold_the_truth_as_often_as_they_say(kind):
    """400 sets of 60 prompts, drawn where the true mean is known: 95 % within three standard errors."""
    random = np.random.default_rng(3)
    draw = {
        "skewed": (lambda: random.exponential(2.0, 60), 2.0),
        "shares": (lambda: random.binomial(8, 0.3, 60) / 8, 0.3),
        "right or wrong": (lambda: random.binomial(1, 0.7, 60).astype(float), 0.7),
    }[kind]
    inside = 0
    for number in range(400):
        found = mean_interval(draw[0]().tolist(), seed=number)
        inside += found.low <= draw[1] <= found.high
    assert 0.95 - 0.035 <= inside / 400 <= 0.95 + 0.035, inside


def test_one_value_says_nothing_of_others():
    assert mean_interval([0.3]).low == -math.inf


def test_same_values_give_the_same_interval():
    values = np.random.default_rng(0).normal(size=40).tolist()
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values)


def test_pairs_by_hand():
    """Three prompts, all won by 1: of the eight sign patterns two are as extreme."""
    found = compare_paired([1, 1, 1], [0, 0, 0])
    assert (found.difference.mean, found.p_value) == (1.0, 0.25)
    assert (found.wins, found.ties, found.losses) == (3, 0, 0)
    found = compare_paired([0.5, 0.25], [0.5, 0.75])
    assert (found.difference.mean, found.p_value) == (-0.25, 1.0)
    assert (found.wins, found.ties, found.losses) == (0, 1, 1)


def test_pairs_tell_what_two_means_cannot():
    """Prompts differ far more than the models do: the paired interval excludes 0, the models' own ones overlap."""
    random = np.random.default_rng(1)
    hard = random.normal(0, 10, 200)
    first, second = hard + random.normal(0.3, 0.5, 200), hard + random.normal(0, 0.5, 200)
    found = compare_paired(first.tolist(), second.tolist())
    assert found.difference.low > 0
    assert found.p_value < 0.01
    assert mean_interval(first.tolist()).low < mean_interval(second.tolist()).high


def test_chance_is_seldom_taken_for_a_difference():
    random = np.random.default_rng(2)
    small = sum(
        compare_paired(random.normal(size=30).tolist(), random.normal(size=30).tolist(), seed=n).p_value < 0.05
        for n in range(200)
    )
    assert small <= 20


def test_pairs_need_the_same_prompts():
    with pytest.raises(ValueError, match="expected one of each model for every prompt"):
        compare_paired([1.0], [1.0, 2.0])
