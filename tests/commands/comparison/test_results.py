"""What is kept of a comparison, in one file."""

import json
import re
from multiprocessing import get_context
from pathlib import Path

import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.report import comparison_report
from mmdet_sssd.commands.comparison.results import ResultsFolder, plain_config

from .synthetic import folder_of, result, results

BENCHMARKS = Path(__file__).parents[3] / 'docs/benchmarks'
STUDENT = dict(type='RetinaNet', backbone=dict(depth=18, out_indices=(0, 1)), neck=dict(type='FPN'))
STOCK = dict(model=STUDENT, stretch=2.0, optim_wrapper=dict(custom_keys={'backbone.conv1': 0}))
DISTILLED = dict(
    model=dict(type='SSSDDistiller', student=STUDENT, distill_coef=10),
    optim_wrapper=dict(custom_keys={'backbone.conv1': 0, 'backbone': None}),
)
CONFIGS = {
    'sssd+distill_coef=3': {**DISTILLED, 'model': {**DISTILLED['model'], 'distill_coef': 3}},
    'sssd': DISTILLED,
    'baseline': STOCK,
}


@pytest.fixture
def folder(tmp_path):
    """Three arms of two seeds each."""
    found = {
        arm: {seed: result(arm, seed, 40 + index * seed / 10, step=0.1) for seed in (10, 9)}
        for index, arm in enumerate(CONFIGS)
    }
    configs = {arm: Config(cfg) for arm, cfg in CONFIGS.items()}
    return folder_of(tmp_path / 'results', found, configs=configs, command='compare a')


def test_arms_are_in_their_order_with_the_baseline_first(tmp_path):
    names = ('sssd+tau=10', 'sssd', 'baseline', 'lgd')
    folder = folder_of(tmp_path, results(**{name: [40.0, 41.0] for name in names}))
    found = folder.read()
    assert list(found) == ['baseline', 'sssd+tau=10', 'sssd', 'lgd']
    assert found['lgd'][1].metrics == result('lgd', 1, 41.0).metrics
    assert list(folder.read(['sssd', 'nothing', 'baseline'])) == ['baseline', 'sssd']


def test_the_first_config_is_kept_whole_and_others_as_changes(folder):
    for arm, cfg in CONFIGS.items():
        assert folder.arm(arm).config == plain_config(Config(cfg))
    baseline, swept, sssd = json.loads(folder.file.read_text())['arms'].values()
    assert baseline['config']['model']['backbone'] == dict(depth=18, out_indices=[0, 1])
    for entry in (swept, sssd):
        assert entry['base'] == 'baseline'
        assert entry['overrides']['_removed_'] == ['stretch']
        assert entry['overrides']['optim_wrapper'] == dict(custom_keys=dict(backbone=None))


def test_adding_replaces_what_is_there_and_keeps_the_rest(folder):
    folder.add(command='compare b')
    written = folder.file.read_bytes()
    folder.add(*folder.arm('sssd').runs.values(), command='compare a')
    assert folder.file.read_bytes() == written
    assert folder.records()[0] == ['compare a', 'compare b']
    folder.add(result('sssd', 9, 50.0), result('lgd', 9, 52.0))
    aps = {seed: run.ap('val')['AP'] for seed, run in folder.arm('sssd').runs.items()}
    assert aps == pytest.approx({9: 50, 10: 41})
    assert folder.arm('sssd').config['model']['distill_coef'] == 10
    assert folder.arm('lgd').config is None  # it was not given


@pytest.mark.parametrize(
    'damage',
    [
        lambda text: text[:-100],
        lambda text: '[]',
        lambda text: text.replace('"arms"', '"arm"'),
        lambda text: text.replace('"base": "baseline"', '"base": "other"'),
        lambda text: text.replace('"iterations"', '"steps"'),
        lambda text: text.replace('"9": {', '"nine": {'),
    ],
)
def test_a_broken_file_is_named(folder, damage):
    folder.file.write_text(damage(folder.file.read_text()))
    with pytest.raises(ConfigError, match=r'results\.json is not a results file of compare'):
        folder.add()


def test_two_processes_add_to_one_file(tmp_path):
    def add(seeds) -> None:
        for seed in seeds:
            ResultsFolder(tmp_path).add(result('arm', seed, 40.0))

    both = [get_context('fork').Process(target=add, args=(x,)) for x in (range(9), range(9, 18))]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert list(ResultsFolder(tmp_path).arm('arm').runs) == list(range(18))


def test_reports_of_benchmarks_are_those_of_their_results():
    studies = [path.parent for path in BENCHMARKS.glob('*/report.md')]
    assert studies
    for study in studies:
        written = (study / 'report.md').read_text()
        references = re.findall(r'^Difference to (.*), paired', written, re.MULTILINE)
        against = [arm for arm in dict.fromkeys(references) if arm != 'the baseline']
        assert comparison_report(ResultsFolder(study).read(), against) == written
