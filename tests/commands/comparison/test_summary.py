"""Means, intervals and paired differences, against scipy's tests and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from mmdet_sssd.commands.comparison.metrics import standard_metrics
from mmdet_sssd.commands.comparison.summary import (
    TIME,
    Estimate,
    cost_ratios,
    differences,
    estimate,
    levels,
    verdict,
)

from .synthetic import result, results


@pytest.mark.parametrize('count', [2, 5, 30])
def test_paired_difference_is_that_of_the_paired_t_test(count):
    rng = np.random.default_rng(count)
    ours, theirs = rng.normal(43, 1, count), rng.normal(42, 1, count)
    found = differences(results(baseline=theirs, sssd=ours), 'val')['sssd']['AP']
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert (verdict(found, 'lgd') == 'no evidence of a difference') == (expected.pvalue > 0.05)


@pytest.mark.parametrize(
    ('difference', 'words'),
    [
        (Estimate(1.0, 3, 0.1, 1.9), 'higher than lgd'),
        (Estimate(-1.0, 3, -1.9, -0.1), 'lower than lgd'),
        (Estimate(1.0, 3, 0.0, 2.0), 'no evidence of a difference'),
        (Estimate(-1.0, 3, -2.0, 0.0), 'no evidence of a difference'),
        (estimate([1.0]), 'one seed: no interval, so no evidence either way'),
        # of rounded APs: it would be a certainty of width 0
        (estimate([0.1 + 0.2, 0.3]), 'the same difference with every seed: no interval'),
        (estimate([]), 'no seed in common with lgd'),
    ],
)
def test_a_difference_in_words(difference, words):
    assert verdict(difference, 'lgd') == words


def test_pairs_are_the_common_seeds():
    found = results(baseline=[40.0, 41.0, 42.0], sssd=[41.0, 43.0, 43.0, 99.0])
    del found['sssd'][0]
    assert levels(found, 'val')['sssd']['AP'].count == 3
    difference = differences(found, 'val')['sssd']['AP']
    assert (difference.count, difference.mean) == (2, pytest.approx(1.5))


@pytest.mark.parametrize(
    ('metrics', 'expected'),
    [
        ({'teacher/coco/bbox_mAP': 0.9, 'coco/bbox_mAP': 0.4}, {'AP': 40}),
        ({'lvis/bbox_AP': 0.4, 'lvis/bbox_AP50': 0.6, 'teacher/lvis/segm_AP': 0.9}, {'AP': 40}),
        ({'lvis/segm_AP': 0.3, 'lvis/bbox_AP': 0.4}, {'AP': 40, 'mask AP': 30}),
        ({'pascal_voc/mAP': 0.5, 'pascal_voc/AP50': 0.6}, {'AP': 50}),
        ({'accuracy/top1': 0.5, 'coco/bbox_mAP_50': 0.6}, {}),
        (
            {'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_s': -1.0, 'coco/bbox_mAP_m': 0.3},
            dict(AP=40, APm=30),
        ),
    ],
)
def test_which_metrics_are_the_ap(metrics, expected):
    """Those of one evaluator, of boxes and masks, without sizes that have no objects."""
    assert standard_metrics(metrics) == pytest.approx(expected)


def test_costs_that_are_not_known_have_no_ratio():
    """Some systems do not tell a process's peak of memory, which is then 0."""
    runs = {x: {0: result(x, 0, 40, memory=0.0)} for x in ('baseline', 'sssd')}
    assert cost_ratios(runs, 'val')['sssd'].keys() == {TIME}
