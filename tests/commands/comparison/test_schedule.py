"""A stretched schedule is the same one in slow motion."""

import copy

import numpy as np
import pytest
import torch
from mmdet.registry import PARAM_SCHEDULERS
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.schedule import KINDS, stretched

EPOCHS = Config(
    dict(
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=4),
        custom_hooks=[
            dict(type='PipelineSwitchHook', switch_epoch=20),
            dict(type='EMAHook'),
            dict(type='YOLOXModeSwitchHook', num_last_epochs=4),
        ],
    )
)
ITERATIONS = Config(
    dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1000, dynamic_intervals=[(900, 10)]),
        param_scheduler=dict(type='PolyLR', begin=0, end=1000),
    )
)


def test_the_end_and_the_switches_of_an_epoch_loop_move():
    longer = stretched(EPOCHS, 2.5)
    assert longer.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=60, val_interval=4)
    assert longer.custom_hooks[0].switch_epoch == 50
    assert longer.custom_hooks[2].num_last_epochs == 10


def test_an_iteration_schedule_and_a_single_scheduler():
    longer = stretched(ITERATIONS, 1.5)
    assert longer.train_cfg.max_iters == 1500
    assert longer.train_cfg.dynamic_intervals == [(1350, 10)]
    assert longer.param_scheduler.end == 1500


@pytest.mark.parametrize('cfg', [EPOCHS, ITERATIONS])
def test_a_factor_of_1_changes_nothing(cfg):
    before = copy.deepcopy(cfg.to_dict())
    assert stretched(cfg, 1.0).to_dict() == before
    stretched(cfg, 3.0)
    assert cfg.to_dict() == before


CONSTRUCTED = {  # what each kind of scheduler needs, beside begin and end, in a run of 1000 steps
    'Constant': dict(factor=0.2, end=300),
    'CosineAnnealing': dict(T_max=251, eta_min=0.1, begin=99),
    'Linear': dict(start_factor=0.01, begin=50, end=551),
    'MultiStep': dict(milestones=[333, 501, 501], gamma=0.3, begin=33),
    'OneCycle': dict(eta_max=2.0, total_steps=1000),
    'Poly': dict(power=0.9, eta_min=0.01),
    'QuadraticWarmup': dict(end=701),
}
NAMES = [f'{kind}LR' for kind in KINDS] + ['LinearMomentum', 'CosineAnnealingParamScheduler']


def values(scheduler: dict, length: int) -> list[float]:
    """What a scheduler makes of a learning rate, or a momentum, of 0.9, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.9, momentum=0.9)
    built = PARAM_SCHEDULERS.build(
        {'end': length, **scheduler}, default_args=dict(optimizer=optimizer)
    )
    found = []
    for _ in range(length):
        found.append(optimizer.param_groups[0][built.param_name])
        optimizer.step()
        built.step()
    return found


@pytest.mark.parametrize('factor', [1.5, 0.75])
@pytest.mark.parametrize('name', NAMES)
def test_schedulers_keep_their_place_in_the_run(name, factor):
    kind = next(kind for kind in KINDS if name.startswith(kind))
    scheduler = dict(type=name, by_epoch=False, **CONSTRUCTED[kind])
    if name.endswith('ParamScheduler'):
        scheduler['param_name'] = 'lr'
    loop = dict(type='IterBasedTrainLoop', max_iters=1000)
    longer = stretched(Config(dict(train_cfg=loop, param_scheduler=[scheduler])), factor)
    before = values(scheduler, 1000)
    after = values(longer.param_scheduler[0], longer.train_cfg.max_iters)
    assert len(set(before)) > 1
    off = [
        fraction
        for fraction in np.arange(0.0025, 1, 0.005)
        if after[int(fraction * len(after))]
        != pytest.approx(before[int(fraction * len(before))], rel=0.02, abs=0.004)
    ]
    assert len(off) <= 0.05 * 200, off  # a step's place is a whole number


def test_parts_of_an_epoch_and_odd_epochs_keep_their_meaning():
    warmup = dict(type='LinearLR', convert_to_iter_based=True, begin=0, end=0.5)
    cosine = dict(type='CosineAnnealingLR', begin=6, end=12, T_max=6)
    cfg = Config(dict(train_cfg=dict(max_epochs=12), param_scheduler=[warmup, cosine]))
    warmup, cosine = stretched(cfg, 1.25).param_scheduler
    assert warmup.end == 0.625
    assert (cosine.begin, cosine.end, cosine.T_max) == (8, 15, 7)  # it ends with the run


@pytest.mark.parametrize('name', ['WarmupHoldLR', 'MyLinearLR', 'StepLR', None])
def test_an_unknown_scheduler_is_named(name):
    scheduler = dict(type=name, begin=0, end=12, hold=3)
    cfg = Config(dict(train_cfg=dict(max_epochs=12), param_scheduler=[scheduler]))
    with pytest.raises(ConfigError, match=rf'^param_scheduler\.type is {name!r}; accepted: .*Poly'):
        stretched(cfg, 1.5)
