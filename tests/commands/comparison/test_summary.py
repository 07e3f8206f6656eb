"""Means, intervals and paired differences, against scipy's tests and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from mmdet_sssd.commands.comparison.metrics import main_metric, standard_metrics
from mmdet_sssd.commands.comparison.summary import (
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
        (estimate([1.0, 1.0]), 'the same difference with every seed: no interval'),
        (estimate([]), 'no seed in common with lgd'),
    ],
)
def test_a_difference_in_words(difference, words):
    assert verdict(difference, 'lgd') == words


def test_rounded_values_that_are_equal_have_no_interval():
    """Equal differences of rounded APs would otherwise be a certainty of width 0."""
    found = differences(results(baseline=[42.1, 41.5], sssd=[43.1, 42.5]), 'val')['sssd']['AP']
    assert found.mean == pytest.approx(1.0)
    assert found.low is None


def test_pairs_are_the_common_seeds():
    found = results(baseline=[40.0, 41.0, 42.0], sssd=[41.0, 43.0, 43.0, 99.0])
    del found['sssd'][0]
    assert levels(found, 'val')['sssd']['AP'].count == 3
    difference = differences(found, 'val')['sssd']['AP']
    assert (difference.count, difference.mean) == (2, pytest.approx(1.5))


def test_costs_are_relative_to_the_same_seed():
    found = {
        'baseline': {0: result('baseline', 0, 40, seconds=10, memory=100)},
        'sssd': {
            0: result('sssd', 0, 40, seconds=19, memory=150),
            1: result('sssd', 1, 40, seconds=99),
        },
    }
    ratios = cost_ratios(found, 'val')['sssd']
    assert {name: x.mean for name, x in ratios.items()} == pytest.approx(
        {'training time': 1.9, 'peak memory': 1.5}  # no median: its step was not noted
    )


def test_sizes_without_objects_are_left_out():
    metrics = result('sssd', 0, 40, s=-1.0, m=0.3).metrics['val']
    assert standard_metrics(metrics) == pytest.approx({'AP': 40, 'AP50': 70, 'APm': 30})


def test_masks_are_those_of_the_boxes_evaluator():
    boxes = {'lvis/bbox_AP': 0.4, 'teacher/lvis/segm_AP': 0.9}
    assert standard_metrics(boxes) == pytest.approx({'AP': 40})
    with_masks = boxes | {'lvis/segm_AP': 0.3}
    assert standard_metrics(with_masks) == pytest.approx({'AP': 40, 'mask AP': 30})
    assert standard_metrics({'pascal_voc/mAP': 0.5}) == pytest.approx({'AP': 50})


@pytest.mark.parametrize(
    ('names', 'main'),
    [
        (['teacher/coco/bbox_mAP', 'coco/segm_mAP', 'coco/bbox_mAP'], 'coco/bbox_mAP'),
        (['lvis/bbox_AP', 'lvis/bbox_AP50'], 'lvis/bbox_AP'),
        (['pascal_voc/mAP', 'pascal_voc/AP50'], 'pascal_voc/mAP'),
        (['accuracy/top1', 'coco/bbox_mAP_50'], None),
    ],
)
def test_which_metric_is_the_ap(names, main):
    assert main_metric(dict.fromkeys(names, 0.5)) == main
