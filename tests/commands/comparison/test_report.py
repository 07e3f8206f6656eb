"""Tables: what is in them, and how a difference is worded."""

import csv
import io

from mmdet_sssd.commands.comparison.report import comparison_report, csv_report

from .synthetic import result, results


def row(text, arm):
    """The entries of an arm's rows, one after the other."""
    lines = [line for line in text.splitlines() if line.startswith(f'| {arm} |')]
    return [entry.strip() for line in lines for entry in line.split('|')[2:-1]]


def test_levels_differences_and_words():
    text = comparison_report(
        results(baseline=[40.0, 42.0, 44.0], better=[41.0, 43.1, 44.9], same=[41, 41, 43])
    )
    assert row(text, 'baseline')[:3] == ['3', '42.0 ± 5.0', '72.0 ± 5.0']
    better = row(text, 'better')
    assert better[9:][:2] == ['higher than the baseline', '+1.0 [+0.8, +1.2] (n=3)']
    assert 'no evidence of a difference' in row(text, 'same')


def test_chance_counts_differences_with_an_interval_alone():
    found = results(baseline=[40.0, 42.0, 44.0], better=[41.0, 43.1, 44.9], same=[41, 41, 43])
    found |= results(single=[45.0], shifted=[41.0, 43.0, 45.0])
    assert 'about 0.1 of 2 would exclude 0 by chance' in comparison_report(found)
    single = comparison_report(results(baseline=[40.0], sssd=[41.0], lgd=[42.0]))
    assert 'by chance' not in single


def test_a_baseline_that_learnt_nothing_is_pointed_out():
    told = 'The baseline reaches an AP of 0.3: it has hardly begun to learn'
    assert told in comparison_report(results(baseline=[0.2, 0.4], sssd=[1.2, 1.4]))
    assert 'hardly begun' not in comparison_report(results(baseline=[40.0], sssd=[0.1]))


def test_teachers_that_stopped_early_are_pointed_out():
    found = results(baseline=[40.0] * 3, gentle=[41.0] * 3, paper=[41.0])
    assert 'teacher_must_lead' not in comparison_report(found)
    for seed, leads in enumerate((False, True, False)):
        found['gentle'][seed].teacher_leads = leads
    text = comparison_report(found)
    assert 'gentle (seeds 0, 2): the teacher was behind the student' in text
    assert 'paper (' not in text


def test_without_a_baseline_there_are_levels_alone():
    text = comparison_report(results(sssd=[40.0, 42.0]))
    assert 'The baseline has no result yet' in text
    assert 'Δ AP' not in text
    assert row(text, 'sssd')[1] == '41.0 ± 12.7'


def test_costs_are_relative_to_the_same_seed():
    found = {
        'baseline': {0: result('baseline', 0, 40, seconds=10, step=0.1, memory=100)},
        'sssd': {
            0: result('sssd', 0, 40, seconds=25, step=0.18, memory=150),
            1: result('sssd', 1, 40, seconds=99),  # which the baseline lacks
        },
    }
    text = comparison_report(found)
    assert '| training time | median step × iterations | peak memory |' in text
    assert '| ×2.50 | ×1.80 | ×1.50 |' in text
    found['baseline'][0].step_seconds = None
    assert '| median step' not in comparison_report(found)


def test_differences_to_another_arm_stand_beside_the_baselines():
    found = results(baseline=[40.0, 42.0, 44.0], lgd=[40.5, 43.0, 44.4], sssd=[41.0, 43.6, 44.9])
    text = comparison_report(found, against=['lgd'])
    head, tail = text.split('Difference to lgd, paired by seed:')
    assert 'Difference to the baseline, paired by seed:' in head
    assert row(tail, 'sssd')[:2] == ['higher than lgd', '+0.5 [+0.4, +0.7] (n=3)']
    assert row(tail, 'baseline') == row(tail, 'lgd') == []
    assert '3 differences of AP have an interval' in text


def test_both_splits_have_tables_and_rows():
    found = {
        arm: {s: result(arm, s, ap + s, step=0.1, splits=('val', 'test')) for s in range(2)}
        for arm, ap in (('baseline', 40), ('sssd', 41))
    }
    text = comparison_report(found)
    assert text.index('## Validation data') < text.index('## Test data')
    rows = list(csv.DictReader(io.StringIO(csv_report(found))))
    assert [(x['arm'], x['seed'], x['split'], float(x['AP'])) for x in rows[-2:]] == [
        ('sssd', '1', 'val', 42.0),
        ('sssd', '1', 'test', 42.0),
    ]
    costs = ('iterations', 'train_seconds', 'step_seconds', 'peak_memory_mib', 'device')
    assert [rows[0][x] for x in costs] == ['100', '60.0', '0.1', '500.0', 'CPU']


def test_masks_have_columns_where_there_are_masks():
    found = results(baseline=[40.0, 42.0], sssd=[41.0, 43.5])
    for arm, aps in (('baseline', (30, 33)), ('sssd', (31, 36))):
        for seed, ap in enumerate(aps):
            found[arm][seed].metrics['val'] |= {'coco/segm_mAP': ap / 100}
    text = comparison_report(found)
    assert '| APl | mask AP | training time |' in text
    assert row(text, 'sssd')[7] == '33.5 ± 31.8'
    assert row(text, 'sssd')[-1] == '+2.0 [-10.7, +14.7] (n=2)'
    rows = list(csv.DictReader(io.StringIO(csv_report(found))))
    assert [float(x['mask AP']) for x in rows] == [30, 33, 31, 36]
    assert 'mask AP50' not in rows[0]
