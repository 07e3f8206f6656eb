"""Tables: what is in them, and how a difference is worded."""

import csv
import json

import pytest

from mmdet_sssd.commands.comparison.metrics import class_metrics, main_metric, standard_metrics
from mmdet_sssd.commands.comparison.summary import summarize

from .synthetic import result, results, write_report


def row(text, arm):
    """The cells of an arm's rows, one after the other."""
    lines = [line for line in text.splitlines() if line.startswith(f'| {arm} |')]
    return [cell.strip() for line in lines for cell in line.split('|')[2:-1]]


def test_levels_differences_and_words(tmp_path):
    text = write_report(
        tmp_path, results(baseline=[40.0, 42.0, 44.0], better=[41.0, 43.1, 44.9], same=[41, 41, 43])
    )
    assert row(text, 'baseline')[:3] == ['3', '42.0 ± 5.0', '72.0 ± 5.0']
    better = row(text, 'better')
    assert better[9:][:2] == ['higher than the baseline', '+1.0 [+0.8, +1.2] (n=3)']
    assert 'no evidence of a difference' in row(text, 'same')


def test_chance_is_told_of_differences_with_an_interval_alone(tmp_path):
    cells = results(baseline=[40.0, 42.0, 44.0], better=[41.0, 43.1, 44.9], same=[41, 41, 43])
    cells |= results(single=[45.0], shifted=[41.0, 43.0, 45.0])
    text = write_report(tmp_path, cells)
    assert '2 differences of AP have an interval' in text
    assert 'about 0.1 of 2 would exclude 0 by chance' in text
    single = write_report(tmp_path, results(baseline=[40.0], sssd=[41.0], lgd=[42.0]))
    assert 'by chance' not in single


def test_one_seed_is_said_to_have_no_interval(tmp_path):
    text = write_report(tmp_path, results(baseline=[40.0], sssd=[42.0]))
    assert row(text, 'sssd')[1] == '42.0'
    assert 'one seed: no interval, so no evidence either way' in row(text, 'sssd')
    assert '+2.0 (n=1)' in row(text, 'sssd')


def test_a_baseline_that_has_learnt_next_to_nothing_is_pointed_out(tmp_path):
    told = 'The baseline reaches an AP of 0.3: it has hardly begun to learn'
    assert told in write_report(tmp_path, results(baseline=[0.2, 0.4], sssd=[1.2, 1.4]))
    assert 'hardly begun' not in write_report(tmp_path, results(baseline=[40.0], sssd=[0.1]))


def test_missing_cells_leave_the_pairs_that_there_are(tmp_path):
    cells = results(baseline=[40.0, 41.0, 42.0], sssd=[41.0, 43.0, 43.0])
    del cells['sssd'][0]
    summary = summarize(cells, 'val')['sssd']
    assert summary.seeds == [1, 2]
    assert summary.differences['AP'].count == 2
    assert summary.differences['AP'].mean == pytest.approx(1.5)


def test_without_a_baseline_there_are_levels_alone(tmp_path):
    text = write_report(tmp_path, results(sssd=[40.0, 42.0]))
    assert 'The baseline has no result yet' in text
    assert 'Δ AP' not in text
    assert row(text, 'sssd')[1] == '41.0 ± 12.7'


def test_costs_are_relative_to_the_baseline_with_the_same_seed():
    cells = {
        'baseline': {0: result('baseline', 0, 40, seconds=10, memory=100)},
        'sssd': {
            0: result('sssd', 0, 40, seconds=19, memory=150),
            1: result('sssd', 1, 40, seconds=99),
        },
    }
    summary = summarize(cells, 'val')['sssd']
    assert summary.time_ratio.mean == pytest.approx(1.9)
    assert summary.memory_ratio.mean == pytest.approx(1.5)


def test_time_is_told_as_summed_and_by_the_median_step(tmp_path):
    cells = {
        'baseline': {0: result('baseline', 0, 40, seconds=10, step=0.1)},
        'sssd': {0: result('sssd', 0, 40, seconds=25, step=0.18)},
    }
    text = write_report(tmp_path, cells)
    assert '| training time | median step × iterations | peak memory |' in text
    assert '| ×2.50 | ×1.80 | ×1.00 |' in text
    first, second = csv.DictReader((tmp_path / 'report.csv').open())
    assert (first['step_seconds'], second['step_seconds']) == ('0.1', '0.18')
    cells['baseline'][0].step_seconds = None
    assert '| median step' not in write_report(tmp_path, cells)


def test_differences_to_another_arm_stand_beside_those_to_the_baseline(tmp_path):
    cells = results(baseline=[40.0, 42.0, 44.0], lgd=[40.5, 43.0, 44.4], sssd=[41.0, 43.6, 44.9])
    text = write_report(tmp_path, cells, against=['lgd'])
    head, tail = text.split('Difference to lgd, paired by seed:')
    assert 'Difference to the baseline, paired by seed:' in head
    assert row(tail, 'sssd')[:2] == ['higher than lgd', '+0.5 [+0.4, +0.7] (n=3)']
    assert row(tail, 'baseline') == row(tail, 'lgd') == []
    assert '3 differences of AP have an interval' in text
    content = json.loads((tmp_path / 'report.json').read_text())['val']
    ours, theirs = content['relative to lgd']['sssd'], content['relative to baseline']['sssd']
    assert ours['differences']['AP']['mean'] == pytest.approx(1.6 / 3)
    assert theirs['differences']['AP']['mean'] == pytest.approx(3.5 / 3)


def test_both_splits_side_by_side_and_as_files(tmp_path):
    cells = {
        arm: {s: result(arm, s, ap + step * s, splits=('val', 'test')) for s in range(2)}
        for arm, ap, step in (('baseline', 40, 1), ('sssd', 40.5, 2), ('lgd', 40, 2))
    }
    text = write_report(tmp_path, cells)
    assert '4 differences of AP have an interval' in text
    assert text.index('## Validation data') < text.index('## Test data')
    rows = list(csv.DictReader((tmp_path / 'report.csv').open()))
    assert len(rows) == 12
    assert rows[-1]['split'] == 'test'
    assert float(rows[-1]['AP']) == 42.0
    content = json.loads((tmp_path / 'report.json').read_text())
    assert content['test']['relative to baseline']['sssd']['differences']['AP'][
        'mean'
    ] == pytest.approx(1.0)
    assert (tmp_path / 'report.md').read_text() == text


def test_masks_have_columns_where_there_are_masks(tmp_path):
    cells = results(baseline=[40.0, 42.0], sssd=[41.0, 43.5])
    for arm, aps in (('baseline', (30, 33)), ('sssd', (31, 36))):
        for seed, ap in enumerate(aps):
            cells[arm][seed].metrics['val'] |= {'coco/segm_mAP': ap / 100}
    text = write_report(tmp_path, cells)
    assert '| APl | mask AP | training time |' in text
    assert row(text, 'sssd')[7] == '33.5 ± 31.8'
    assert row(text, 'sssd')[-1] == '+2.0 [-10.7, +14.7] (n=2)'
    rows = list(csv.DictReader((tmp_path / 'report.csv').open()))
    assert [float(x['mask AP']) for x in rows] == [30, 33, 31, 36]
    assert 'mask AP50' not in rows[0]


def test_sizes_without_objects_are_left_out():
    metrics = result('sssd', 0, 40, s=-1.0, m=0.3).metrics['val']
    assert standard_metrics(metrics) == pytest.approx({'AP': 40, 'AP50': 70, 'APm': 30})


def test_masks_of_the_same_evaluator_are_those_of_the_boxes():
    boxes = {'lvis/bbox_AP': 0.4, 'teacher/lvis/segm_AP': 0.9}
    assert standard_metrics(boxes) == pytest.approx({'AP': 40})
    with_masks = boxes | {'lvis/segm_AP': 0.3, 'lvis/segm_AP75': 0.2}
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


def test_ap_by_class_is_that_of_boxes():
    metrics = {'coco/red cell_precision': 0.5, 'coco/none_precision': float('nan')}
    assert class_metrics({**metrics, 'coco/bbox_mAP': 0.4}) == {'red cell': 50}
    assert class_metrics({**metrics, 'coco/segm_mAP': 0.4}) == {}
