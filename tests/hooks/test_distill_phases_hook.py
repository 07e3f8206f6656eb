import copy
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODEL_WRAPPERS

from mmdet_sssd.checks.dry_run import warnings_listed
from mmdet_sssd.hooks import DistillPhasesHook
from mmdet_sssd.hooks.distill_phases_hook import _set_trainable

from ..distillers import assert_equal
from ..toy_detector import ITERS_PER_EPOCH, toy_runner

ITERS = 18
LOOPS = {
    'iterations': dict(type='IterBasedTrainLoop', max_iters=ITERS),
    'epochs': dict(type='EpochBasedTrainLoop', max_epochs=ITERS // ITERS_PER_EPOCH),
}
OPTIMIZERS = {
    'SGD': dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)),
    'AdamW': dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1)),
}


class Watch(Hook):
    """Keeps the weights before each iteration and after the last, and what each one logged."""

    priority = 'LOWEST'

    def __init__(self):
        self.weights, self.logged, self.detached, self.hub = [], [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.weights.append(copy.deepcopy(runner.model.state_dict()))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.logged.append(set(outputs))
        self.detached.append(runner.model.terms['distill'].detach_student)
        scalars = runner.message_hub.log_scalars
        self.hub.append({k for k in scalars if 'teacher' in k or 'distill' in k})

    def after_train(self, runner):
        self.weights.append(copy.deepcopy(runner.model.state_dict()))

    def moved(self, prefix):
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return [
            any(not torch.equal(a[k], b[k]) for k in a if k.startswith(prefix)) for a, b in pairs
        ]


def run(tmp_path, loop='iterations', hooks=(), **kwargs):
    names = (*DistillPhasesHook.FRACTIONS, 'teacher_must_lead')
    phases = {name: kwargs.pop(name) for name in names if name in kwargs}
    watch = Watch()
    runner = toy_runner(
        tmp_path,
        hooks=[dict(type='DistillPhasesHook', **phases), *hooks, watch],
        train_cfg=LOOPS[loop],
        checkpoint=dict(by_epoch=False, interval=ITERS // 2),
        **kwargs,
    )
    runner.train()
    return watch, runner


def in_log(work_dir, pattern):
    """What a run's log has of a pattern's group, in order."""
    (log,) = work_dir.glob('*/*.log')
    return re.findall(pattern, log.read_text())


@pytest.mark.parametrize('loop', LOOPS)
def test_the_student_is_detached_first_and_last(tmp_path, loop):
    watch, _ = run(tmp_path, loop, detach_student=1 / 6, detach_last=1 / 9)
    assert watch.detached == [True] * 3 + [False] * 13 + [True] * 2
    phases = in_log(tmp_path, r'Term distill trains (only its adapter|the student)')
    assert phases == ['only its adapter', 'the student', 'only its adapter']


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_momentum_and_decay_leave_a_frozen_backbone_alone(tmp_path, loop, optimizer):
    watch, _ = run(tmp_path, loop, freeze_backbone=1 / 9, optim_wrapper=OPTIMIZERS[optimizer])
    assert watch.moved('student.backbone') == [False] * 2 + [True] * 16
    assert all(watch.moved('student.neck'))
    assert in_log(tmp_path, 'The backbone (is frozen|trains)') == ['is frozen', 'trains']


def test_a_frozen_backbone_thaws_what_trained_before(tmp_path):
    class FreezeBias(Hook):
        def before_run(self, runner):
            runner.model.student.backbone.bias.requires_grad_(False)

    watch, _ = run(tmp_path, hooks=[FreezeBias()], freeze_backbone=1 / 2)
    assert watch.moved('student.backbone.weight') == [False] * 9 + [True] * 9
    assert not any(watch.moved('student.backbone.bias'))


@pytest.mark.parametrize(('until', 'expected'), [(1, 18), (1 / 3, 6), (0, 0)])
def test_the_teacher_trains_until_its_end(tmp_path, until, expected):
    """Afterwards momentum and weight decay move nothing of it."""
    watch, _ = run(tmp_path, teacher_until=until, optim_wrapper=OPTIMIZERS['SGD'])
    active = [i < expected for i in range(ITERS)]
    assert ['loss_distill' in x for x in watch.logged] == active
    assert ['teacher.loss_cls' in x for x in watch.logged] == active
    assert watch.moved('teachers.') == watch.moved('terms.') == active
    assert watch.moved('student.') == [True] * ITERS


class Losses(Hook):
    """Sets what the log has of the losses; the student's are 1, the teacher's as given."""

    priority = 'HIGHEST'  # before the hook that logs them

    def __init__(self, of_teacher):
        self.of_teacher = of_teacher

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for name in [x for x in outputs if x.startswith('teacher.') and 'loss' in x]:
            outputs[name] = torch.tensor(self.of_teacher(runner.iter))
            outputs[name.removeprefix('teacher.')] = torch.tensor(1.0)


@pytest.mark.parametrize(
    ('of_teacher', 'leads'),
    [
        (lambda i: 0.9, True),
        (lambda i: 1.1, False),
        (lambda i: 1.0, False),
        (lambda i: 9.0 if i < 3 else 0.9, True),  # the second half of the phase counts
        (lambda i: 0.1 if i < 3 else 1.1, False),
        (lambda i: float('nan') if i == 4 else 0.9, True),  # a step that diverged does not count
    ],
)
def test_a_teacher_that_must_lead_stops_if_it_does_not(tmp_path, of_teacher, leads):
    phases = dict(detach_student=1 / 3, teacher_until=2 / 3, teacher_must_lead=True)
    watch, _ = run(tmp_path, hooks=[Losses(of_teacher)], **phases)
    assert ['loss_distill' in x for x in watch.logged] == [
        i < (12 if leads else 6) for i in range(ITERS)
    ]
    (said,) = in_log(tmp_path, r"its detection loss is .*, the student's ([0-9.]+)")
    assert float(said) == 1.0


def test_a_run_that_is_resumed_to_be_longer_looks_again(tmp_path, monkeypatch):
    """It is found not to lead after 6 of 18 iterations, and to lead after 12 of 36."""
    phases = dict(detach_student=1 / 3, teacher_must_lead=True)
    run(tmp_path / 'short', hooks=[Losses(lambda i: 1.1)], **phases)
    checkpoint = str(tmp_path / 'short' / f'iter_{ITERS // 2}.pth')
    monkeypatch.setitem(LOOPS, 'long', {**LOOPS['iterations'], 'max_iters': 2 * ITERS})
    again = dict(resume=True, load_from=checkpoint, hooks=[Losses(lambda i: 0.1)])
    watch, _ = run(tmp_path / 'long', 'long', **again, **phases)
    assert all('loss_distill' in x for x in watch.logged)


@MODEL_WRAPPERS.register_module()
class Wrapper:
    def __init__(self, module):
        self.module = module


def test_a_wrapper_made_anew_is_compiled_as_the_runner_compiled_the_old_one():
    compiled = []
    runner = SimpleNamespace(model=Wrapper(torch.nn.Linear(1, 1)), cfg={})
    runner.wrap_model = lambda _, model: Wrapper(model)
    runner._maybe_compile = lambda target: compiled.append((runner.model, target))
    old = runner.model
    _set_trainable(runner, [*old.module.parameters()], False)
    assert runner.model is not old
    assert runner.model.module is old.module
    assert compiled == [(runner.model, 'train_step')]


def test_after_its_end_the_log_has_nothing_of_the_teacher(tmp_path):
    hooks = [dict(type='AdaptiveDistillCoefHook', policy='constant', ratio=0.5)]
    watch, runner = run(tmp_path, hooks=hooks, teacher_until=0.5)
    expected = {'train/teacher.loss_cls', 'train/loss_distill', 'train/distill_coef'}
    assert all(expected <= keys for keys in watch.hub[:9])
    assert watch.hub[9:] == [set()] * 9
    assert runner.message_hub.get_scalar('train/loss_cls').data[0].size == ITERS


@pytest.mark.parametrize(
    ('phases', 'is_told'),
    [
        (dict(detach_student=1 / 6, teacher_until=1 / 2), False),
        (dict(teacher_until=0.0), True),
        (dict(detach_student=1 / 2, teacher_until=1 / 3), True),
        (dict(detach_student=1 / 2, detach_last=1 / 2), True),
    ],
)
def test_phases_that_leave_no_time_are_told(tmp_path, phases, is_told):
    with warnings_listed() as warnings:
        run(tmp_path, **phases)
    assert any('never train the student' in x for x in warnings) == is_told


@pytest.mark.parametrize(
    'phases',
    [
        dict(teacher_until=0.25, detach_student=0.75, freeze_backbone=0.75),
        dict(teacher_until=0.75, detach_student=0.25, freeze_backbone=0.25),
        dict(teacher_must_lead=True, detach_student=0.25, hooks=[Losses(lambda i: 1.1)]),
        dict(teacher_must_lead=True, detach_student=0.75),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, phases):
    optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.1)
    kwargs = dict(phases, optim_wrapper=dict(optimizer=optimizer))
    whole, _ = run(tmp_path / 'whole', **copy.deepcopy(kwargs))
    checkpoint = str(tmp_path / 'whole' / f'iter_{ITERS // 2}.pth')
    resumed, _ = run(tmp_path / 'resumed', resume=True, load_from=checkpoint, **kwargs)
    assert len(resumed.weights) == ITERS // 2 + 1
    assert_equal(dict(resumed.weights[-1]), dict(whole.weights[-1]))
