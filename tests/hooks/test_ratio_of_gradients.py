"""``ratio`` of AdaptiveDistillCoefHook, against gradients that are worked out on their own."""

import copy
import math

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper

from mmdet_sssd.hooks import AdaptiveDistillCoefHook
from mmdet_sssd.models import JSDistanceLoss
from mmdet_sssd.runs import load_from_local

from ..distillers import SSIM, assert_equal, pretrained
from ..toy_detector import NUM_IMAGES, TOY_MODEL, toy_loader, toy_runner

BASE = 2.0  # toy_runner's λ
RATIO = 0.3
ALL_IMAGES = toy_loader('InfiniteSampler', shuffle=False) | dict(batch_size=NUM_IMAGES)
STILL = dict(optimizer=dict(type='SGD', lr=0.0))
SGD = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), clip_grad=dict(max_norm=0.1))


@MODELS.register_module()
class TimesLoss(JSDistanceLoss):
    """A multiple of the JS distance."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def average(self, distances, feats):
        return super().average(distances, feats) * self.times


def norms(model, batch, term='distill'):
    """Norms of the gradients that the student's loss and a term without λ send into the features."""
    model = copy.deepcopy(model)
    data = model.data_preprocessor(batch, True)
    (leaf,) = (x.detach().requires_grad_() for x in model.extract_feat(data['inputs']))
    model.student.extract_feat = lambda _: (leaf,)
    model.terms[term].distill_coef = 1.0
    losses = model(**data, mode='loss')
    return [torch.autograd.grad(losses[k], leaf)[0].norm() for k in ('loss_cls', f'loss_{term}')]


def balanced(model, batch, term='distill'):
    """The λ with which both have the same norm."""
    student, distill = norms(model, batch, term)
    return (student / distill).item()


class Recorder(Hook):
    """Notes λ in each iteration, the λ that would balance, and whether the term pulls the student."""

    priority = 'LOWEST'

    def __init__(self, term='distill'):
        self.term = term
        self.coefs, self.wanted, self.pulls = [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = runner.model
        self.coefs.append(model.terms[self.term].distill_coef)
        self.pulls.append(model.teachers['teacher'].active)
        self.pulls[-1] &= not model.terms[self.term].detach_student
        self.wanted.append(balanced(model, data_batch, self.term) if self.pulls[-1] else None)


def run(work_dir, hook=(), hooks=(), iters=8, **kwargs):
    recorder = Recorder()
    hook = {'type': 'AdaptiveDistillCoefHook', 'ratio': RATIO, **dict(hook)}
    train_cfg = dict(type='IterBasedTrainLoop', max_iters=iters)
    settings = dict(hooks=[hook, *hooks, recorder], train_cfg=train_cfg)
    runner = toy_runner(work_dir, **{**settings, **kwargs})
    runner.train()
    return recorder, runner


def still_run(work_dir, **kwargs):
    """A run in which neither weights nor batch change."""
    return run(work_dir, train_dataloader=ALL_IMAGES, optim_wrapper=STILL, **kwargs)


class Scaled(OptimWrapper):
    """Scales the loss as mixed precision does, and leaves out a step with infinite gradients."""

    scale = 2.0**10

    def backward(self, loss, **kwargs):
        super().backward(loss * self.scale, **kwargs)

    def step(self, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group['params']]
        for grad in grads:
            grad /= self.scale
        if all(x.isfinite().all() for x in grads):
            super().step(**kwargs)


@pytest.mark.parametrize(
    ('one', 'other'),
    [(SGD, SGD | dict(type=Scaled)), (STILL, STILL | dict(accumulative_counts=4))],
    ids=['loss scale', 'accumulation'],
)
def test_factors_of_the_whole_loss_do_not_change_lambda(tmp_path, one, other):
    first, _ = run(tmp_path / 'one', optim_wrapper=one)
    second, _ = run(tmp_path / 'other', optim_wrapper=other)
    assert first.coefs == second.coefs
    assert len(set(first.coefs)) > 3


def restated(wanted, pulls, interval):
    """λ₀ of each iteration by the λ that would balance there, and when that was measured."""
    coefs, logs, due = [], [], 0
    mean, measured = None, []
    for iteration, found in enumerate(wanted):
        coefs.append(BASE if mean is None else RATIO * math.exp(mean))
        if iteration < due or not pulls[iteration]:
            continue
        logs.append(math.log(found))
        mean = sum(logs) / len(logs) if len(logs) <= 10 else 0.9 * mean + 0.1 * logs[-1]
        measured.append(iteration)
        due = iteration + min(len(logs), interval)
    return coefs, measured


def test_lambda_is_a_running_mean_times_the_policy_s_factor(tmp_path, monkeypatch):
    monkeypatch.setattr(AdaptiveDistillCoefHook, 'INTERVAL', 4)
    drop = dict(type='MultiStepLR', by_epoch=False, milestones=[24], gamma=0.1)
    hook = dict(factor=3.0)
    recorder, _ = run(tmp_path, hook, iters=50, schedulers=[drop], optim_wrapper=SGD)
    coefs, measured = restated(recorder.wanted, recorder.pulls, interval=4)
    assert measured[:6] == [0, 1, 3, 6, 10, 14]
    assert len(measured) > 12
    assert max(recorder.wanted) > 1.2 * min(recorder.wanted), 'nothing to average'
    expected = [coef * (3 if i >= 24 else 1) for i, coef in enumerate(coefs)]
    assert recorder.coefs == pytest.approx(expected, rel=1e-3)


PHASES = {
    'detached': dict(detach_student=0.25, detach_last=0.25),
    'done': dict(teacher_until=0.5),
}


@pytest.mark.parametrize('phase', PHASES)
def test_lambda_stays_where_the_term_does_not_pull(tmp_path, monkeypatch, phase):
    monkeypatch.setattr(AdaptiveDistillCoefHook, 'INTERVAL', 2)
    hooks = [dict(type='DistillPhasesHook', **PHASES[phase])]
    recorder, _ = run(tmp_path, hooks=hooks, iters=24, optim_wrapper=SGD)
    assert 3 < sum(recorder.pulls) < 20
    coefs, measured = restated(recorder.wanted, recorder.pulls, interval=2)
    assert len(measured) > 3
    assert recorder.coefs == pytest.approx(coefs, rel=1e-3)
    for i, pulls in enumerate(recorder.pulls[:-1]):
        assert pulls or recorder.coefs[i + 1] == recorder.coefs[i]


class ScaledTooMuch(Scaled):
    """Scales the loss until the squares of a gradient a hundred times as long are infinite."""

    scale = 2.0**65


class Factors(Hook):
    """Multiplies the distillation loss by a factor of each iteration's own."""

    def __init__(self, factors):
        self.factors = factors

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.terms['distill'].distill_loss.times = self.factors[runner.iter]


def test_norms_that_are_zero_or_not_finite_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(AdaptiveDistillCoefHook, 'INTERVAL', 1)
    factors = [0.0, math.nan, 100.0, 1.0, math.nan, 1.0, 0.0, 1.0]
    recorder, runner = run(
        tmp_path,
        hooks=[Factors(factors)],
        model=TOY_MODEL | dict(distill_loss=dict(type='TimesLoss', times=1.0)),
        train_dataloader=ALL_IMAGES,
        optim_wrapper=STILL | dict(type=ScaledTooMuch),
    )
    expected = RATIO * recorder.wanted[-1]
    assert recorder.coefs == pytest.approx([BASE] * 4 + [expected] * 4, rel=1e-4)
    assert all(x.isfinite().all() for x in runner.model.state_dict().values())


def test_each_term_has_a_ratio_of_its_own(tmp_path):
    other = dict(type='AdaptiveDistillCoefHook', term='ssim', ratio=0.7)
    of_ssim = Recorder('ssim')
    terms = dict(ssim={**SSIM, 'teacher': 'large', 'distill_coef': 5.0})
    model = TOY_MODEL | dict(teachers=dict(large=pretrained()), terms=terms)
    recorder, _ = still_run(tmp_path, hooks=[other, of_ssim], model=model)
    assert recorder.coefs == pytest.approx([BASE] + [RATIO * recorder.wanted[0]] * 7, rel=1e-4)
    assert of_ssim.coefs == pytest.approx([5.0] + [0.7 * of_ssim.wanted[0]] * 7, rel=1e-4)


STATE = 'adaptive_distill_coef.distill.ratio'


def resumable(work_dir, epochs, ratio=RATIO, **kwargs):
    """λ in each iteration of a run, and its last checkpoint."""
    train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
    recorder, _ = run(work_dir, dict(ratio=ratio), train_cfg=train_cfg, **kwargs)
    return recorder.coefs, load_from_local(str(work_dir / f'epoch_{epochs}.pth'))


def test_a_resumed_run_goes_on_to_the_bit(tmp_path):
    coefs, whole = resumable(tmp_path / 'whole', 3)
    middle = str(tmp_path / 'whole/epoch_2.pth')
    assert load_from_local(middle)[STATE]['wait'] > 0
    again, end = resumable(tmp_path / 'again', 3, resume=True, load_from=middle)
    assert again == coefs[12:]
    assert len(set(again)) > 1
    assert end[STATE] == whole[STATE]
    assert_equal(dict(end['state_dict']), dict(whole['state_dict']))


@pytest.mark.parametrize(('before', 'after'), [(None, RATIO), (RATIO, None)])
def test_a_run_is_resumed_with_or_without_a_ratio(tmp_path, before, after):
    _, end = resumable(tmp_path / 'before', 1, before)
    assert (STATE in end) == (before is not None)
    checkpoint = str(tmp_path / 'before/epoch_1.pth')
    coefs, _ = resumable(tmp_path / 'after', 2, after, resume=True, load_from=checkpoint)
    assert coefs[0] == BASE
    assert (len(set(coefs)) > 1) == (after is not None)


@pytest.mark.parametrize('limit', [1.5, 1000.0])
def test_lambda_stays_within_bounds_and_its_final_value_is_logged(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(AdaptiveDistillCoefHook, 'MAX_CHANGE', limit)
    recorder, runner = still_run(tmp_path, iters=4)
    assert not runner.model.terms['distill'].is_measured
    wanted = RATIO * recorder.wanted[0]
    assert not BASE / 1.5 < wanted < BASE * 1.5
    bound = BASE * limit if wanted > BASE else BASE / limit
    expected = wanted if limit == 1000 else bound
    assert recorder.coefs[1:] == pytest.approx([expected] * 3, rel=1e-4)
    (log,) = tmp_path.glob('*/*.log')
    held = ', limited' if limit == 1.5 else ''
    assert f'{recorder.coefs[-1]:.4g} (ratio 0.3, 3 measurements{held})' in log.read_text()
