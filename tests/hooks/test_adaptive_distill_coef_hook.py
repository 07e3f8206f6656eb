import pytest
from mmengine.hooks import Hook

from mmdet_sssd.checks.dry_run import warnings_listed

from ..toy_detector import toy_runner

BASE = 2.0  # toy_runner's λ
ITERS = 20
ITER_LOOP = dict(type='IterBasedTrainLoop', max_iters=ITERS)
WARM_UP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)


class Recorder(Hook):
    """Notes each iteration's λ, and the rate of the student's neck."""

    priority = 'LOWEST'

    def __init__(self):
        self.rows = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        neck = runner.model.student.neck.weight
        (lr,) = [
            group['lr']
            for group in runner.optim_wrapper.param_groups
            if any(p is neck for p in group['params'])
        ]
        self.rows.append((runner.model.terms['distill'].distill_coef, lr))


def run(tmp_path, hook, schedulers=(), train_cfg=ITER_LOOP, **kwargs):
    recorder = Recorder()
    hooks = [dict(type='AdaptiveDistillCoefHook', **hook), recorder]
    runner = toy_runner(tmp_path, hooks=hooks, schedulers=schedulers, train_cfg=train_cfg, **kwargs)
    runner.train()
    coefs, lrs = map(list, zip(*recorder.rows, strict=True))
    assert runner.message_hub.get_scalar('train/distill_coef').data[0].tolist() == coefs
    return coefs, lrs


def multi_step(*milestones, gamma=0.1, **kwargs):
    return dict(
        type='MultiStepLR', by_epoch=False, milestones=list(milestones), gamma=gamma, **kwargs
    )


def test_step_policy_rises_once_after_warm_up(tmp_path):
    coefs, lrs = run(tmp_path, dict(factor=3.0), [WARM_UP, multi_step(10, 15)])
    assert lrs[0] == pytest.approx(0.01), 'warm-up did not run'
    assert coefs == [BASE] * 10 + [BASE * 3] * 10


@pytest.mark.parametrize(
    ('policy', 'schedulers', 'is_told'),
    [
        ('step', [WARM_UP, multi_step(ITERS + 10)], True),
        ('step', [WARM_UP, multi_step(ITERS - 1)], False),
        ('step', [dict(type='CosineAnnealingLR', by_epoch=False, T_max=ITERS)], False),
        ('step', [dict(type='LinearLR', start_factor=1.0, end_factor=0.01, by_epoch=False)], False),
        ('constant', [WARM_UP, multi_step(ITERS + 10)], False),
        ('constant', [WARM_UP, multi_step(10)], False),
    ],
)
def test_a_run_in_which_the_coefficient_cannot_rise_says_so(tmp_path, policy, schedulers, is_told):
    with warnings_listed() as warnings:
        coefs, _ = run(tmp_path, dict(policy=policy), schedulers)
    assert policy == 'step' or coefs == [BASE] * ITERS
    assert any('λ will not rise' in x for x in warnings) == is_told


def test_epoch_schedule_and_several_parameter_groups(tmp_path):
    """Rates that differ by constant factors, and groups that hold no student parameter."""
    optim_wrapper = dict(
        optimizer=dict(type='SGD', lr=0.1),
        paramwise_cfg=dict(
            custom_keys={'backbone': dict(lr_mult=0.1), 'teacher': dict(lr_mult=50.0)},
            bias_lr_mult=0.5,
        ),
    )
    coefs, lrs = run(
        tmp_path,
        dict(factor=3.0),
        [dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.1)],
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3),
        optim_wrapper=optim_wrapper,
    )
    assert lrs == pytest.approx([0.1] * 12 + [0.01] * 6)
    assert coefs == [BASE] * 12 + [BASE * 3] * 6


@pytest.mark.parametrize('weight', [1.0, 0.7, 0.5])
def test_lambda_rises_where_a_cosine_has_halved_until_a_restart(tmp_path, weight):
    """The restart goes back to a part of the highest rate. A half counts as a decay, 0.7 does not."""
    schedule = dict(
        type='CosineRestartLR', by_epoch=False, periods=[10, 10], restart_weights=[1, weight],
        eta_min=1e-3,
    )  # fmt: skip
    coefs, lrs = run(tmp_path, dict(policy='step', factor=3.0), [schedule])
    assert lrs[10] == pytest.approx(lrs[0] * weight)
    assert coefs[:10] == [BASE * 3 if lr <= lrs[0] / 2 else BASE for lr in lrs[:10]]
    assert coefs[10] == (BASE * 3 if weight == 0.5 else BASE)
