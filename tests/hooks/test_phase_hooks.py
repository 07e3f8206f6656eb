import re
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import Hook

from mmdet_sssd import ConfigError
from mmdet_sssd.hooks import DetachStudentHook, FreezeBackboneHook

from ..toy_detector import ITERS_PER_EPOCH, toy_runner

ITERS = 18
LOOPS = {
    'iterations': dict(type='IterBasedTrainLoop', max_iters=ITERS),
    'epochs': dict(type='EpochBasedTrainLoop', max_epochs=ITERS // ITERS_PER_EPOCH),
}


class Recorder(Hook):
    """Notes, after each iteration, whether the student is detached, and some weights."""

    def __init__(self):
        self.detached, self.weights = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        student = runner.model.student
        self.detached.append(runner.model.terms['distill'].detach_student)
        self.weights.append(
            {name: getattr(student, name).weight.detach().clone() for name in ('backbone', 'neck')}
        )


def run(tmp_path, hook, loop, **kwargs):
    recorder = Recorder()
    runner = toy_runner(tmp_path, hooks=[hook, recorder], train_cfg=LOOPS[loop], **kwargs)
    initial = {
        n: getattr(runner.model.student, n).weight.detach().clone() for n in ('backbone', 'neck')
    }
    runner.train()
    return recorder, [initial, *recorder.weights], runner


def logged(work_dir, pattern):
    """What a run's log has of a pattern's group, in order."""
    (log,) = work_dir.glob('*/*.log')
    return re.findall(pattern, log.read_text())


@pytest.mark.parametrize('loop', LOOPS)
def test_student_is_detached_in_the_first_and_last_part(tmp_path, loop):
    hook = dict(type='DetachStudentHook', first=1 / 6, last=1 / 9)
    recorder, *_ = run(tmp_path, hook, loop)
    assert recorder.detached == [True] * 3 + [False] * 13 + [True] * 2
    phases = logged(tmp_path, r'Term distill: the student.*? (detached|learns)')
    assert phases == ['detached', 'learns', 'detached']


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize(
    'optim_wrapper',
    [
        dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)),
        dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1)),
    ],
    ids=['SGD', 'AdamW'],
)
def test_backbone_is_still_in_the_first_part(tmp_path, loop, optim_wrapper):
    hook = dict(type='FreezeBackboneHook', first=1 / 9)
    _, weights, runner = run(tmp_path, hook, loop, optim_wrapper=optim_wrapper)
    moved = [
        {name: not torch.equal(before[name], after[name]) for name in before}
        for before, after in pairwise(weights)
    ]
    assert all(x['neck'] for x in moved)
    assert [x['backbone'] for x in moved] == [False] * 2 + [True] * 16
    assert logged(tmp_path, 'The backbone (is frozen|trains)') == ['is frozen', 'trains']
    assert 'step' not in vars(runner.optim_wrapper)


def test_a_frozen_backbone_gathers_no_momentum(tmp_path):
    _, _, runner = run(tmp_path, dict(type='FreezeBackboneHook', first=1.0), 'iterations')
    state = runner.optim_wrapper.optimizer.state
    assert runner.model.student.neck.weight in state
    assert runner.model.student.backbone.weight not in state


def test_gradients_of_frozen_iterations_are_not_accumulated(tmp_path):
    """The backbone thaws before the second half of six accumulated iterations."""
    seen = []

    class Gradient(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(runner.model.student.backbone.weight.grad is not None)

    optim_wrapper = dict(
        type='OptimWrapper', accumulative_counts=6, optimizer=dict(type='SGD', lr=0.1)
    )
    runner = toy_runner(
        tmp_path,
        hooks=[dict(type='FreezeBackboneHook', first=1 / 6), Gradient()],
        train_cfg=LOOPS['iterations'],
        optim_wrapper=optim_wrapper,
    )
    runner.train()
    assert seen[:6] == [False, True, True, False, True, True]


def test_a_frozen_backbone_does_not_count_in_the_clipped_norm(tmp_path):
    norms = []

    class Norms(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            norms.append(runner.message_hub.get_scalar('train/grad_norm').current())

    captured = []

    class Gradients(Hook):
        """Works out the norm of all gradients but the backbone's, as they are before the step."""

        priority = 'LOWEST'  # wraps the step that FreezeBackboneHook wrapped

        def before_train(self, runner):
            wrapper, model = runner.optim_wrapper, runner.model
            step = wrapper.step
            backbone = {id(p) for p in model.student.backbone.parameters()}

            def capture(*args, **kwargs):
                grads = [p.grad for p in model.parameters() if id(p) not in backbone]
                captured.append(torch.stack([g.norm() for g in grads]).norm().item())
                assert all(p.grad.any() for p in model.student.backbone.parameters())
                step(*args, **kwargs)

            wrapper.step = capture

    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=0.1))
    runner = toy_runner(
        tmp_path,
        hooks=[dict(type='FreezeBackboneHook', first=1.0), Norms(), Gradients()],
        train_cfg=LOOPS['iterations'],
        optim_wrapper=optim_wrapper,
    )
    runner.train()
    assert norms == pytest.approx(captured, rel=1e-5)


@pytest.mark.parametrize('hook', [DetachStudentHook, FreezeBackboneHook])
@pytest.mark.parametrize('value', [-0.1, 1.1, 20000])
def test_bad_fractions_are_named(hook, value):
    with pytest.raises(
        ConfigError, match=rf'{hook.__name__}\.first is {value}; accepted: a fraction'
    ):
        hook(first=value)
