"""What all runs of a comparison have in common, and what is not mixed."""

import copy

import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.comparison.runs import Run, comparable_config, keep_config

GIVEN = dict(
    model=dict(type='RetinaNet', depth=3),
    train_dataloader=dict(batch_size=2),
    val_dataloader=dict(batch_size=1),
    test_dataloader=dict(batch_size=1),
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=12),
    optim_wrapper=dict(lr=0.1),
    val_evaluator=[dict(type='CocoMetric', metric='bbox'), dict(type='DumpDetResults')],
    test_evaluator=dict(type='LVISMetric'),
    visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='TensorboardVisBackend')]),
    custom_imports=dict(imports=['mine'], allow_failed_imports=True),
    default_hooks=dict(
        timer=dict(type='IterTimerHook'),
        logger=dict(type='LoggerHook', interval=7),
        checkpoint=dict(
            type='CheckpointHook',
            interval=3,
            save_best='auto',
            max_keep_ckpts=9,
            out_dir='elsewhere',
        ),
        export=dict(type='ExportStudentHook'),
        numbers=dict(type='RandomStateHook'),
    ),
    work_dir='elsewhere',
)


def test_runs_can_be_resumed_and_tell_their_cost():
    given = Config(copy.deepcopy(GIVEN))
    cfg = comparable_config(given)
    assert given.to_dict() == GIVEN
    hooks = cfg.default_hooks
    assert hooks.timer == dict(type='TrainingCostHook')
    assert hooks.logger == dict(type='LoggerHook', interval=7, log_metric_by_epoch=True)
    assert hooks.checkpoint == dict(
        type='SafeCheckpointHook', interval=3, save_last=True, max_keep_ckpts=1
    )
    assert 'export' not in hooks
    assert [x.type for x in hooks.values()].count('RandomStateHook') == 1
    assert [x.type for x in cfg.visualizer.vis_backends] == [
        'TensorboardVisBackend',
        'LocalVisBackend',
    ]
    assert cfg.custom_imports.imports[:2] == ['mine', 'mmdet_sssd']
    assert cfg.custom_imports.allow_failed_imports is True
    for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'):
        assert cfg[key] == GIVEN[key]
    assert 'work_dir' not in cfg


def test_coco_and_lvis_evaluate_by_class():
    cfg = comparable_config(Config(GIVEN))
    assert cfg.val_evaluator == [
        dict(type='CocoMetric', metric='bbox', classwise=True),
        dict(type='DumpDetResults'),
    ]
    assert cfg.test_evaluator == dict(type='LVISMetric', classwise=True)


@pytest.mark.parametrize('key', ['val_dataloader', 'val_evaluator', 'train_cfg'])
def test_a_config_without_validation_is_refused(key):
    with pytest.raises(ConfigError, match=f'^{key} is None'):
        comparable_config(Config({**GIVEN, key: None}))


def test_runs_differ_in_seed_and_folder_alone(tmp_path):
    cfg = Config({**GIVEN, 'randomness': dict(seed=0, deterministic=True)})
    first, second = (
        Run('a', seed, tmp_path, ResultsFolder(tmp_path)).config(cfg) for seed in (3, 4)
    )
    assert first.randomness == dict(seed=3, deterministic=True)
    assert first.work_dir == str(tmp_path / 'a/seed_3')
    for x in (first, second):
        x.pop('work_dir')
        x.randomness.pop('seed')
    assert first.to_dict() == second.to_dict()


def test_results_of_another_config_are_refused(comparison):
    def keep(cfg):
        keep_config(comparison.results, 'arm', cfg, [])

    keep(comparison.config)
    comparison.train(0)
    keep(comparison.config)
    longer = comparison.config
    longer.train_cfg.max_epochs = 3
    with pytest.raises(ConfigError, match=r'differs in train_cfg\.max_epochs\.'):
        keep(longer)
    tested = comparison.config
    tested.test_evaluator.ap = 0.5
    keep(tested)  # nothing was tested so far
    comparison.train(0, test=True)
    with pytest.raises(ConfigError, match=r'differs in test_evaluator\.ap\.'):
        keep(comparison.config)


def test_a_run_does_not_go_on_with_another_config(comparison):
    comparison.fake['kill'] = [0]
    comparison.train(0)
    runs = [comparison.run(0)]
    keep_config(comparison.results, 'arm', comparison.config, runs)
    longer = comparison.config
    longer.train_cfg.max_epochs = 3
    with pytest.raises(ConfigError, match=r'arm seed 0 was started .* train_cfg\.max_epochs\.'):
        keep_config(comparison.results, 'arm', longer, runs)


def test_a_run_goes_on_in_a_folder_that_was_moved(comparison, tmp_path):
    comparison.fake['kill'] = [0]
    comparison.train(0)
    comparison.run(0).work_dir.rename(tmp_path / 'moved')
    moved = Run('arm', 0, tmp_path / 'moved', comparison.results)
    assert moved.checkpoint
    keep_config(comparison.results, 'arm', comparison.config, [moved])


def test_a_finished_run_is_not_taken_for_one_to_go_on_with(comparison, tmp_path):
    """Its last checkpoint would be the result of another data set, or of a run to repeat."""
    comparison.train(0)
    run = comparison.run(0)
    keep_config(comparison.results, 'arm', comparison.config, [run])
    elsewhere = Run('arm', 0, run.work_dir, ResultsFolder(tmp_path / 'other'))
    with pytest.raises(ConfigError, match=rf'arm seed 0 was trained before.*remove {run.folder}'):
        keep_config(elsewhere.results, 'arm', comparison.config, [elsewhere])
    comparison.train(1, keep_checkpoints=False)
    anew = Run('arm', 1, run.work_dir, elsewhere.results)
    keep_config(anew.results, 'arm', comparison.config, [anew])  # it begins at its beginning
