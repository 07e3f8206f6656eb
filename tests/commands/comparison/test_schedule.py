"""A stretched schedule is the same one in slow motion."""

import copy

import pytest
from mmengine.config import Config

from mmdet_sssd.commands.comparison.schedule import length, stretched

EPOCHS = Config(
    dict(
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=4),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
            dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[16, 21]),
            dict(type='CosineAnnealingLR', T_max=12, begin=12, end=24, eta_min=0.1),
        ],
        custom_hooks=[dict(type='PipelineSwitchHook', switch_epoch=20), dict(type='EMAHook')],
    )
)
ITERATIONS = Config(
    dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1000, dynamic_intervals=[(900, 10)]),
        param_scheduler=dict(type='PolyLR', begin=0, end=1000),
    )
)


def test_length_of_epoch_and_iteration_loops():
    assert length(EPOCHS) == ('epoch', 24)
    assert length(ITERATIONS) == ('iteration', 1000)


def test_every_point_of_an_epoch_schedule_moves():
    longer = stretched(EPOCHS, 2.5)
    assert longer.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=60, val_interval=4)
    warmup, steps, cosine = longer.param_scheduler
    assert (warmup.begin, warmup.end, warmup.start_factor) == (0, 250, 0.001)
    assert (steps.end, list(steps.milestones)) == (60, [40, 52])
    assert (cosine.T_max, cosine.begin, cosine.end, cosine.eta_min) == (30, 30, 60, 0.1)
    assert longer.custom_hooks[0].switch_epoch == 50


def test_an_iteration_schedule_and_a_single_scheduler():
    longer = stretched(ITERATIONS, 1.5)
    assert longer.train_cfg.max_iters == 1500
    assert longer.train_cfg.dynamic_intervals == [(1350, 10)]
    assert longer.param_scheduler.end == 1500


@pytest.mark.parametrize('cfg', [EPOCHS, ITERATIONS])
def test_the_given_config_stays_and_a_factor_of_1_changes_nothing(cfg):
    before = copy.deepcopy(cfg.to_dict())
    assert stretched(cfg, 1.0).to_dict() == before
    stretched(cfg, 3.0)
    assert cfg.to_dict() == before
