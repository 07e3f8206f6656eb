"""What is kept of a comparison: files of cells, and the one that they are packed into."""

import json
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.cells import describe_changes, keep_arm_config
from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.step_times import StepTimes, write_step_times

from .synthetic import result, write_report

BENCHMARKS = Path(__file__).parents[3] / 'docs/benchmarks'
STUDENT = dict(type='RetinaNet', backbone=dict(depth=18, out_indices=(0, 1)), neck=dict(type='FPN'))
DATA = dict(dataset=dict(pipeline=[dict(type='Resize', scale=(192, 144)), dict(type='Flip')] * 9))
STOCK = dict(
    model=STUDENT,
    train_dataloader=DATA,
    stretch=2.0,
    optim_wrapper=dict(custom_keys={'backbone.conv1': 0}),
)
DISTILLED = dict(
    train_dataloader=DATA,
    model=dict(type='SSSDDistiller', student=STUDENT, distill_coef=10),
    optim_wrapper=dict(custom_keys={'backbone.conv1': 0, 'backbone': None}),
)
CONFIGS = {
    'baseline': STOCK,
    'sssd': DISTILLED,
    'sssd+distill_coef=3': {**DISTILLED, 'model': {**DISTILLED['model'], 'distill_coef': 3}},
}


@pytest.fixture
def folder(tmp_path):
    """Three arms of two seeds each, as they lie there when they are trained."""
    folder = ResultsFolder(tmp_path / 'results')
    for index, (arm, cfg) in enumerate(CONFIGS.items()):
        keep_arm_config(folder, arm, Config(cfg))
        for seed in (10, 9):
            cell = result(arm, seed, 40 + index * seed / 10, step=0.1, classes={'cat': 30.0 + seed})
            cell.write(folder.runs / arm / f'seed_{seed}.json')
    return folder


def test_results_are_found_baseline_first_and_values_as_numbers(tmp_path):
    folder = ResultsFolder(tmp_path)
    for arm in ('sssd+tau=10', 'sssd', 'sssd+tau=2', 'lgd', 'baseline'):
        for seed in (10, 9):
            result(arm, seed, 40.0).write(folder.runs / arm / f'seed_{seed}.json')
    found = folder.read()
    assert list(found) == ['baseline', 'lgd', 'sssd', 'sssd+tau=2', 'sssd+tau=10']
    assert list(found['sssd']) == [9, 10]
    assert found['lgd'][9].metrics == result('lgd', 9, 40.0).metrics
    assert list(folder.read(['sssd', 'nothing', 'baseline'])) == ['sssd', 'baseline']


def test_one_file_has_all_of_it(folder):
    before, configs = folder.read(), {arm: folder.config(arm) for arm in CONFIGS}
    text = write_report(folder.path, before)
    folder.pack('compare --seeds 9,10')
    shutil.rmtree(folder.runs)
    assert folder.read() == before
    assert list(folder.read()) == list(before)
    assert {arm: folder.config(arm) for arm in CONFIGS} == configs
    assert write_report(folder.path, folder.read()) == text
    for arm, cfg in CONFIGS.items():
        assert describe_changes(folder.config(arm), Config(cfg), tested=True) == ''
        other = Config({**cfg, 'stretch': 1.0})
        assert describe_changes(folder.config(arm), other, tested=True) == 'stretch'


def test_a_config_is_whole_once_and_else_what_differs(folder):
    folder.pack()
    baseline, sssd, swept = json.loads(folder.file.read_text())['arms'].values()
    assert baseline['config']['model']['backbone'] == dict(depth=18, out_indices=[0, 1])
    assert sssd['base'] == 'baseline'
    assert sssd['overrides']['_removed_'] == ['stretch']
    assert sssd['overrides']['optim_wrapper'] == dict(custom_keys=dict(backbone=None))
    assert swept['base'] == 'sssd'
    assert swept['overrides'] == dict(model=dict(distill_coef=3))


def test_packing_again_changes_nothing(folder):
    folder.pack('compare a')
    folder.pack('compare b')
    written = folder.file.read_bytes()
    shutil.rmtree(folder.runs)
    folder.pack()
    folder.pack('compare a')
    assert folder.file.read_bytes() == written
    assert json.loads(written)['commands'] == ['compare a', 'compare b']


def test_what_cells_wrote_themselves_counts(folder):
    folder.pack()
    shutil.rmtree(folder.runs)
    result('sssd', 9, 50.0).write(folder.runs / 'sssd/seed_9.json')
    result('sssd', 11, 51.0).write(folder.runs / 'sssd/seed_11.json')
    result('lgd', 9, 52.0).write(folder.runs / 'lgd/seed_9.json')
    for _ in range(2):
        aps = {seed: cell.ap('val')['AP'] for seed, cell in folder.cells('sssd').items()}
        assert aps == pytest.approx({9: 50, 10: 41, 11: 51})
        assert list(folder.read()) == ['baseline', 'lgd', 'sssd', 'sssd+distill_coef=3']
        assert folder.config('sssd')['model']['distill_coef'] == 10
        assert folder.config('lgd') is None  # there was no file of it
        folder.pack()
        shutil.rmtree(folder.runs, ignore_errors=True)


def test_step_times_are_kept_with_their_arm(folder):
    times = dict(baseline=StepTimes([0.1, 0.2], 10, 'CPU'), sssd=StepTimes([0.3], 10, 'CPU'))
    write_step_times(folder.step_times_file('baseline'), times)
    folder.pack()
    shutil.rmtree(folder.runs)
    assert folder.step_times('baseline') == times
    assert list(folder.step_times('baseline')) == list(times)
    assert folder.step_times('sssd') is None


@pytest.mark.parametrize(
    ('damage', 'found'),
    [
        (lambda text: text[:-100], 'JSONDecodeError: '),
        (lambda text: '', 'JSONDecodeError: '),
        (lambda text: '[]', 'TypeError: '),
        (lambda text: text.replace('"arms"', '"arm"'), "KeyError: 'arms'"),
        (lambda text: text.replace('"base": "sssd"', '"base": "ssd"'), "KeyError: 'ssd'"),
        (lambda text: text.replace('"iterations"', '"steps"'), r"TypeError: .*'steps'"),
        (lambda text: text.replace('"9": {', '"nine": {'), "ValueError: .*'nine'"),
    ],
)
def test_a_broken_file_is_named(folder, damage, found):
    folder.pack()
    folder.file.write_text(damage(folder.file.read_text()))
    message = rf'results\.json is not a results file of compare \({found}.*\); restore it'
    for use in (folder.read, folder.pack, lambda: folder.config('lgd')):
        with pytest.raises(ConfigError, match=message):
            use()


def test_results_of_version_0_1_are_read_without_a_step_time():
    cell = ResultsFolder(BENCHMARKS / 'bccd_retinanet_24-epochs_new-seeds').cells('baseline')[5]
    assert cell.train_seconds > 0
    assert cell.step_seconds is cell.median_seconds is None


@pytest.mark.parametrize('study', sorted(BENCHMARKS.iterdir()), ids=lambda path: path.name)
def test_reports_of_the_benchmarks_are_what_their_results_say(study, tmp_path):
    written = (study / 'report.md').read_text()
    lines = [line for line in written.splitlines() if line.startswith('Difference to ')]
    rivals = dict.fromkeys(line[len('Difference to ') :].partition(',')[0] for line in lines)
    against = [arm for arm in rivals if arm != 'the baseline']
    assert write_report(tmp_path, ResultsFolder(study).read(), against=against) == written
