"""Means, intervals and paired differences, against scipy's tests and numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from mmdet_sssd.commands.comparison.statistics import (
    Estimate,
    estimate,
    paired_difference,
    paired_ratio,
    verdict,
)


def test_interval_of_three_values_by_hand():
    """The 97.5% point of t with 2 degrees of freedom is 4.3027; the standard error 1/√3."""
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.count == 3
    assert found.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert found.low == pytest.approx(2 - 4.3027 / math.sqrt(3), rel=1e-4)


@pytest.mark.parametrize('count', [2, 5, 30])
def test_paired_difference_is_that_of_the_paired_t_test(count):
    rng = np.random.default_rng(count)
    ours, theirs = rng.normal(43, 1, count), rng.normal(42, 1, count)
    found = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((ours - theirs).mean())
    contains_0 = stats.ttest_rel(ours, theirs).pvalue > 0.05
    assert (verdict(found, 'the baseline') == 'no evidence of a difference') == contains_0


def test_pairs_are_the_seeds_that_both_have():
    found = paired_difference({0: 5.0, 1: 7.0, 4: 9.0}, {4: 8.0, 0: 3.0, 2: 100.0})
    assert found.count == 2
    assert found.mean == 1.5  # 5 - 3 and 9 - 8


def test_pairing_removes_what_the_seeds_have_in_common():
    """Seeds that differ much, arms that differ by 1 ± 0.1 each time."""
    theirs = {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0}
    ours = {0: 11.1, 1: 20.9, 2: 31.1, 3: 40.9}
    difference = paired_difference(ours, theirs)
    assert verdict(difference, 'the baseline') == 'higher than the baseline'
    assert difference.low == pytest.approx(1 - 3.1824 * 0.115470 / 2, abs=1e-4)
    assert estimate(list(ours.values())).half_width > 20


def test_ratio_is_taken_seed_by_seed():
    assert paired_ratio({0: 2.0, 1: 9.0}, {0: 1.0, 1: 3.0}).mean == 2.5


@pytest.mark.parametrize(
    ('difference', 'words'),
    [
        (Estimate(1.0, 3, 0.1, 1.9), 'higher than the baseline'),
        (Estimate(-1.0, 3, -1.9, -0.1), 'lower than the baseline'),
        (Estimate(1.0, 3, -0.1, 2.1), 'no evidence of a difference'),
        (Estimate(1.0, 3, 0.0, 2.0), 'no evidence of a difference'),
        (estimate([1.0]), 'one seed: no interval, so no evidence either way'),
        (estimate([1.0, 1.0]), 'the same difference with every seed: no interval'),
        (estimate([]), 'no seed in common with the baseline'),
    ],
)
def test_a_difference_in_words(difference, words):
    assert verdict(difference, 'the baseline') == words


def test_one_seed_has_no_interval():
    found = estimate([41.0])
    assert (found.mean, found.count, found.low, found.half_width) == (41.0, 1, None, None)


def test_values_that_differ_by_rounding_alone_have_no_interval():
    """Equal differences of rounded APs would otherwise be a certainty of width 0."""
    found = paired_difference({0: 100 * 0.431, 1: 100 * 0.425}, {0: 100 * 0.421, 1: 100 * 0.415})
    assert found.mean == pytest.approx(1.0)
    assert found.low is None
