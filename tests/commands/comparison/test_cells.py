"""What all cells have in common, and what stays as it was given."""

import copy

import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.cells import Cell, comparable_config
from mmdet_sssd.commands.comparison.results import ResultsFolder

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
        checkpoint=dict(type='CheckpointHook', interval=3, save_best='auto', max_keep_ckpts=9),
        export=dict(type='ExportStudentHook'),
        numbers=dict(type='RandomStateHook'),
    ),
    work_dir='elsewhere',
)


def test_runs_can_be_resumed_and_tell_their_cost():
    hooks = comparable_config(Config(GIVEN)).default_hooks
    assert hooks.timer == dict(type='TrainingCostHook')
    assert hooks.logger == dict(type='LoggerHook', interval=7, log_metric_by_epoch=True)
    assert hooks.checkpoint == dict(
        type='SafeCheckpointHook', interval=3, save_last=True, max_keep_ckpts=1
    )
    assert 'export' not in hooks
    assert [x.type for x in hooks.values()].count('RandomStateHook') == 1


def test_a_stock_config_without_hooks_gets_them_too():
    given = {k: v for k, v in GIVEN.items() if k not in ('default_hooks', 'custom_imports')}
    given['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=10)
    cfg = comparable_config(Config(given))
    assert cfg.default_hooks.checkpoint.type == 'SafeCheckpointHook'
    assert cfg.default_hooks.random_state == dict(type='RandomStateHook')
    assert cfg.default_hooks.logger.log_metric_by_epoch is False
    assert cfg.custom_imports.imports[0] == 'mmdet_sssd'


def test_ap_by_class_is_asked_for_where_it_can_be():
    cfg = comparable_config(Config(GIVEN))
    assert cfg.val_evaluator == [
        dict(type='CocoMetric', metric='bbox', classwise=True),
        dict(type='DumpDetResults'),
    ]
    assert cfg.test_evaluator == dict(type='LVISMetric', classwise=True)


def test_scalars_are_written_and_own_modules_imported():
    cfg = comparable_config(Config(GIVEN))
    backends = [x.type for x in cfg.visualizer.vis_backends]
    assert backends == ['TensorboardVisBackend', 'LocalVisBackend']
    assert cfg.custom_imports.imports[:2] == ['mine', 'mmdet_sssd']
    assert cfg.custom_imports.allow_failed_imports is True


def test_model_data_and_schedule_stay_and_so_does_the_given_config():
    given = Config(copy.deepcopy(GIVEN))
    cfg = comparable_config(given)
    for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'):
        assert cfg[key] == GIVEN[key]
    assert 'work_dir' not in cfg
    assert given.to_dict() == GIVEN


@pytest.mark.parametrize('key', ['val_dataloader', 'val_evaluator', 'train_cfg'])
def test_a_config_without_validation_cannot_be_compared(key):
    with pytest.raises(ConfigError, match=f'^{key} is None; compare needs training'):
        comparable_config(Config({**GIVEN, key: None}))


def test_cells_differ_in_seed_and_folder_alone(tmp_path):
    cfg = Config({**GIVEN, 'randomness': dict(seed=0, deterministic=True)})
    first, second = (
        Cell('a', seed, tmp_path, ResultsFolder(tmp_path)).config(cfg) for seed in (3, 4)
    )
    assert first.randomness == dict(seed=3, deterministic=True)
    assert first.work_dir == str(tmp_path / 'a/seed_3')
    for x in (first, second):
        x.pop('work_dir')
        x.randomness.pop('seed')
    assert first.to_dict() == second.to_dict()
