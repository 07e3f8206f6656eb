"""A whole comparison with real runs; and what is refused before any."""

import os
from pathlib import Path
from unittest import mock

import pytest
from mmdet.visualization import DetLocalVisualizer

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison import training
from mmdet_sssd.commands.comparison.jobs import JobRunner
from mmdet_sssd.commands.comparison.metrics import read_validations
from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.comparison.study import Study
from mmdet_sssd.commands.comparison.training import Training

from ...command import run_command
from ...small_runner import draw_shapes, shapes_environment
from .synthetic import DoneJob, folder_of, results

PICTURES = {'learning_curves', 'differences_val'}
ROOT = Path(__file__).parents[3]
CONFIG = """
_base_ = ['{root}/configs/demo/sssd_retinanet_r18-small_own-data.py']
train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'RandomFlip']
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False)
model = dict(student=dict(backbone=dict(base_channels=8), neck=dict(
    in_channels=[8, 16, 32, 64], out_channels=16), bbox_head=dict(in_channels=16, feat_channels=16)))
model['student']['test_cfg'] = dict(score_thr=0.0)
param_scheduler = []
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A small detector on drawn shapes, 2 epochs of 2 iterations."""
    folder = tmp_path_factory.mktemp('study')
    shapes = draw_shapes(folder / 'shapes')
    (folder / 'config.py').write_text(CONFIG.format(root=ROOT))
    with mock.patch.dict(os.environ, shapes_environment(shapes, epochs=2)):
        yield str(folder / 'config.py')


@pytest.fixture
def in_this_process(config, monkeypatch):
    """Run programs, as jobs start them, in this process; for runs that are quick."""

    def run(name, args, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        DetLocalVisualizer._instance_dict.clear()  # or runs would share their logs
        code, said = run_command(name, *args[1:])
        assert code == 0, said

    monkeypatch.setattr(training, 'run_program', run)
    monkeypatch.setattr(
        JobRunner, '_submit', lambda self, works: [DoneJob(self.folder, x) for x in works]
    )


def test_two_arms_that_stopped_early_and_their_report(config, tmp_path, in_this_process):
    """They are evaluated by their last checkpoint, as a run killed in its last validation is."""
    stop = dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', stopping_threshold=-1.0)
    study = Study(
        config,
        arms=['baseline', 'paper'],
        seeds=[0],
        cfg_options={'custom_hooks': [stop]},
        work_dir=tmp_path,
        dry_run=False,
    )
    assert study.run() == []
    folder = ResultsFolder(tmp_path / 'results')
    baseline, paper = (folder.arm(arm).runs[0] for arm in ('baseline', 'paper'))
    for run in (baseline, paper):
        assert (run.iterations, len(run.curve)) == (2, 1)  # of 4 iterations in 2 epochs
        (validated,) = read_validations(tmp_path / run.arm / 'seed_0').values()
        names = {name: x for name, x in validated.items() if name.startswith('coco/')}
        assert run.metrics['val'] == pytest.approx(names, nan_ok=True)
        assert 'coco/circle_precision' in run.metrics['val']
        assert run.train_seconds > 0
        assert run.peak_memory > 100  # MiB; Python with torch is larger
    assert baseline.metrics != paper.metrics

    written = {path: path.read_bytes() for path in folder.path.glob('[!.]*')}
    assert {path.stem for path in written if path.suffix == '.png'} == PICTURES
    for path in written:
        if path != folder.file:
            path.unlink()
    Study(report_only=True, results=folder.path).run()
    assert {path: path.read_bytes() for path in written} == written


def test_what_was_trained_before_is_reported_too(config, tmp_path):
    folder = folder_of(tmp_path, results(baseline=[40.0], paper=[42.0], lgd=[41.0]))
    trained = dict(arms=['baseline', 'paper'], seeds=[0], against=['lgd'], dry_run=False)
    folders = dict(work_dir=tmp_path, results=tmp_path, command='compare x')
    assert Study(config, **folders, **trained).run() == []
    assert _arms_of(tmp_path) == ['baseline', 'paper', 'lgd']

    chosen = dict(report_only=True, results=tmp_path, arms=['baseline', 'lgd'])
    assert Study(**chosen).run() == []
    assert _arms_of(tmp_path) == ['baseline', 'lgd']
    commands, arms = folder.records()
    assert (commands, list(arms)) == (['compare x'], ['baseline', 'paper', 'lgd'])
    with pytest.raises(ConfigError, match=r'--against: paper is not among.*: baseline, lgd$'):
        Study(**chosen, against=['paper'])
    with pytest.raises(
        ConfigError, match=r'--arms: lost has no results in .*: baseline, paper, lgd$'
    ):
        Study(**chosen | dict(arms=['lost']))


def test_an_arm_of_a_file_is_reported_without_the_file(tmp_path):
    folder_of(tmp_path, results(baseline=[40.0], mine=[42.0]))
    Study(report_only=True, results=tmp_path, arms=['baseline', 'mine']).run()
    assert _arms_of(tmp_path) == ['baseline', 'mine']


def test_an_arm_of_another_schedule_is_not_added(config, tmp_path):
    folders = dict(work_dir=tmp_path, results=tmp_path, dry_run=False, seeds=[])
    Study(config, arms=['baseline'], **folders).run()
    folder_of(tmp_path, results(baseline=[40.0]))
    other = Study(config, arms=['paper'], cfg_options={'train_cfg.max_epochs': 3}, **folders)
    with pytest.raises(
        ConfigError, match=r'arm baseline from another .* differs in train_cfg\.max'
    ):
        other.run()


def _arms_of(folder):
    rows = (folder / 'report.csv').read_text().splitlines()[1:]
    return list(dict.fromkeys(row.partition(',')[0] for row in rows))


@pytest.mark.slow
def test_an_arm_that_cannot_train_is_found_before_any_is_trained(config, tmp_path):
    study = Study(config, arms=['paper+tau=-1', 'baseline'], seeds=[0], work_dir=tmp_path / 'work')
    with pytest.raises(ConfigError, match=r'^dry run of paper\+tau=-1 seed 0: model\.distill_loss'):
        study.run()
    assert not list(tmp_path.glob('work/*/seed_0/*.pth'))


@pytest.mark.slow
def test_nothing_but_failures_is_said_without_a_table(config, tmp_path, capsys):
    study = Study(config, seeds=[0], work_dir=tmp_path, dry_run=False)
    study.training = Training(tools=tmp_path / 'nowhere')
    assert [str(x.run) for x in study.run()] == ['baseline seed 0', 'config seed 0']
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith('failed: config seed 0: ')
    assert '# Comparison' not in lines


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arms=['paper']), r'CONFIG is missing; only --report-only'),
        (dict(report_only=True), r'--report-only needs --results, --work-dir or the CONFIG'),
        (dict(report_only=True, results=Path('nothing')), r'there are no results in nothing; run'),
        (dict(config='x.py', against=['lgd']), r'--against: lgd is not .*: baseline, config$'),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        Study(**options).run()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(split='test'), r'--split test: test_dataloader\.dataset'),
        (
            dict(split='test', cfg_options={'test_dataloader.dataset.ann_file': 'tets.json'}),
            r'test_dataloader\.dataset\.ann_file: there is no .*tets\.json',
        ),
        (dict(cfg_options={'val_evaluator': None}), r'val_evaluator is None'),
        (
            dict(cfg_options={'val_evaluator.metric': 'proposal'}),
            r"metric is \['proposal'\]; compare",
        ),
        (
            dict(
                split='test',
                cfg_options={
                    'test_dataloader.dataset.ann_file': 'annotations/train.json',
                    'test_evaluator.format_only': True,
                },
            ),
            'format_only is True',
        ),
    ],
)
def test_configs_that_cannot_be_compared(config, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        Study(config, work_dir=tmp_path, dry_run=False, **options).run()
    assert not os.listdir(tmp_path)
