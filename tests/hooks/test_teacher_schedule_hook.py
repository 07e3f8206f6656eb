import copy

import pytest
import torch
from mmengine.hooks import Hook

from mmdet_sssd import ConfigError
from mmdet_sssd.hooks import TeacherScheduleHook

from ..toy_detector import ITERS_PER_EPOCH, toy_runner

ITERS = 12


class Watch(Hook):
    """Keeps the weights before each iteration and after the last, and what was logged."""

    priority = 'LOWEST'

    def __init__(self):
        self.weights, self.logged = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.weights.append(copy.deepcopy(runner.model.state_dict()))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.logged.append(set(outputs))

    def after_train(self, runner):
        self.weights.append(copy.deepcopy(runner.model.state_dict()))

    def moved(self, prefix):
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return [
            any(not torch.equal(a[k], b[k]) for k in a if k.startswith(prefix)) for a, b in pairs
        ]


def run(tmp_path, **kwargs):
    watch, schedule = Watch(), kwargs.pop('schedule')
    hooks = [dict(type='TeacherScheduleHook', **schedule), watch]
    train_cfg = dict(type='IterBasedTrainLoop', max_iters=ITERS)
    checkpoint = dict(by_epoch=False, interval=ITERS // 2)
    runner = toy_runner(tmp_path, hooks=hooks, train_cfg=train_cfg, checkpoint=checkpoint, **kwargs)
    runner.train()
    return watch, runner


@pytest.mark.parametrize(
    ('schedule', 'expected'),
    [
        (dict(), [True] * 12),
        (dict(until=1 / 3), [True] * 4 + [False] * 8),
        (dict(every=3), [True, False, False] * 4),
        (dict(until=0.5, every=2), [True, False] * 3 + [False] * 6),
        (dict(until=0), [False] * 12),
    ],
)
def test_the_teacher_is_at_work_when_the_schedule_says(tmp_path, schedule, expected):
    """Momentum and weight decay, which the optimizer has, move nothing where it is idle."""
    watch, runner = run(tmp_path, schedule=schedule)
    assert ['loss_distill' in x for x in watch.logged] == expected
    assert ['teacher.loss_cls' in x for x in watch.logged] == expected
    assert watch.moved('teachers.') == watch.moved('terms.') == expected
    assert watch.moved('student.') == [True] * 12
    assert 'step' not in vars(runner.optim_wrapper)


@pytest.mark.parametrize(
    ('every', 'accumulated', 'expected'),
    [  # the optimizer steps in each `accumulated`-th iteration
        (2, 2, [False, True] * 6),
        (4, 2, [False, True, False, False] * 3),
        (3, 4, [False] * 3 + [True] + [False] * 3 + [True] + [False] * 3 + [True]),
    ],
)
def test_accumulated_gradients_of_its_iterations_count(tmp_path, every, accumulated, expected):
    """Also if the optimizer only steps in iterations where the teacher is idle."""
    optim_wrapper = dict(
        type='OptimWrapper',
        accumulative_counts=accumulated,
        optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1),
        clip_grad=dict(max_norm=0.1),
    )
    watch, _ = run(tmp_path, schedule=dict(every=every), optim_wrapper=optim_wrapper)
    assert watch.moved('teachers.') == watch.moved('terms.') == expected


def test_after_its_end_the_log_says_nothing_of_it(tmp_path):
    class Scalars(Hook):
        priority = 'LOWEST'
        logged = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            hub = runner.message_hub.log_scalars
            self.logged.append({k for k in hub if 'teacher' in k or 'distill' in k})

    hooks = [
        dict(type='TeacherScheduleHook', until=0.5),
        dict(type='AdaptiveDistillCoefHook', policy='constant', ratio=0.5),
        Scalars(),
    ]
    train_cfg = dict(type='IterBasedTrainLoop', max_iters=ITERS)
    runner = toy_runner(tmp_path, hooks=hooks, train_cfg=train_cfg)
    runner.train()
    during, after = Scalars.logged[: ITERS // 2], Scalars.logged[ITERS // 2 :]
    expected = {'train/teacher.loss_cls', 'train/loss_distill', 'train/distill_coef'}
    assert all(expected <= keys for keys in during)
    assert after == [set()] * (ITERS // 2)
    assert runner.message_hub.get_scalar('train/loss_cls').data[0].size == ITERS


def test_after_its_end_the_student_trains_as_stock(tmp_path):
    """From the same weights and optimizer state, with the same images."""
    watch, _ = run(tmp_path / 'distilled', schedule=dict(until=0.5))
    weights = watch.weights[6]
    stock = {k.removeprefix('student.'): x for k, x in weights.items() if k.startswith('student.')}
    student = dict(type='ToyDetector', data_preprocessor=dict(type='DetDataPreprocessor'))
    plain = Watch()
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
    runners = {}
    for name, model, hooks in (
        ('stock', student, [plain]),
        (
            'after',
            dict(type='SSSDDistiller', student=student),
            [dict(type='TeacherScheduleHook', until=0.0), Watch()],
        ),
    ):
        runner = toy_runner(
            tmp_path / name,
            model=model,
            hooks=hooks,
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
            optim_wrapper=optim_wrapper,
        )
        detector = runner.model if name == 'stock' else runner.model.student
        detector.load_state_dict(stock)
        runner.train()
        runners[name] = detector.state_dict()
    for key, value in runners['stock'].items():
        assert torch.equal(runners['after'][key], value), key


@pytest.mark.parametrize('schedule', [dict(until=0.25), dict(until=0.75, every=2)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, schedule):
    whole, _ = run(tmp_path / 'whole', schedule=schedule)
    resumed, _ = run(
        tmp_path / 'resumed',
        schedule=schedule,
        resume=True,
        load_from=str(tmp_path / 'whole' / f'iter_{ITERS // 2}.pth'),
    )
    assert len(resumed.weights) == ITERS // 2 + 1
    for key, value in whole.weights[-1].items():
        assert torch.equal(resumed.weights[-1][key], value), key


def test_epochs_count_where_the_loop_counts_epochs(tmp_path):
    watch = Watch()
    runner = toy_runner(
        tmp_path,
        hooks=[dict(type='TeacherScheduleHook', until=0.5), watch],
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
    )
    runner.train()
    expected = [True] * ITERS_PER_EPOCH + [False] * ITERS_PER_EPOCH
    assert ['loss_distill' in x for x in watch.logged] == expected


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(until=2), r'TeacherScheduleHook\.until is 2; accepted: a fraction of the run'),
        (dict(every=0), r'TeacherScheduleHook\.every is 0; accepted: a whole number >= 1'),
        (dict(every=1.5), r'TeacherScheduleHook\.every is 1\.5'),
    ],
)
def test_bad_schedules_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        TeacherScheduleHook(**kwargs)


def test_an_unknown_teacher_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"TeacherScheduleHook\.teacher is 'x'; .*: teacher"):
        run(tmp_path, schedule=dict(teacher='x'))
