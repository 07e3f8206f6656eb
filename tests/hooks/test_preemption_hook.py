"""Runs that get a signal, in this process, and what they come to when they are resumed."""

import os
import random
import signal
from itertools import count

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmengine.hooks import Hook

from mmdet_sssd import ConfigError
from mmdet_sssd.checkpoints import load_from_local
from mmdet_sssd.hooks import PreemptionHook

from ..tools.run_comparison import assert_equal_states
from ..toy_detector import ITERS_PER_EPOCH, ToyDataset, ToyDetector, toy_loader, toy_runner
from .test_safe_checkpoint_hook import last_checkpoint, pth_files

EPOCHS = 4
RUNS = count()
SLOW = pytest.mark.slow


@DATASETS.register_module()
class JitteredDataset(ToyDataset):
    """Draws from each generator that augmentations draw from."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        item['inputs'] = item['inputs'] + noise
        return item


@MODELS.register_module()
class NoisyDetector(ToyDetector):
    """Draws random numbers in training, as the sampling of RoIs does."""

    def loss(self, batch_inputs, batch_data_samples):
        losses = super().loss(batch_inputs, batch_data_samples)
        return {'loss_cls': losses['loss_cls'] * torch.rand(1).sum()}


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends signals to this process before a training or a validation iteration."""

    def __init__(self, numbers, train_iter=None, val_iter=None):
        self.numbers = numbers
        self.train_iter = train_iter
        self.val_iter = val_iter  # (iteration of training, batch of the validation)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.train_iter:
            self.send()

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if (runner.iter, batch_idx) == self.val_iter:
            self.send()

    def send(self):
        for number in self.numbers:
            os.kill(os.getpid(), number)


def make_runner(work_dir, loop='epochs', workers=0, resume=False, signals=None, **kwargs):
    by_epoch = loop == 'epochs'
    interval = 2 if by_epoch else 2 * ITERS_PER_EPOCH  # of checkpoints; validation is more frequent
    persistent = workers > 0 and not kwargs.pop('new_workers', False)
    loader = toy_loader('DefaultSampler' if by_epoch else 'InfiniteSampler')
    loader |= dict(num_workers=workers, persistent_workers=persistent)
    loader['dataset'] = dict(type='JitteredDataset')
    train_cfg = (
        dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS)
        if by_epoch
        else dict(
            type='IterBasedTrainLoop',
            max_iters=EPOCHS * ITERS_PER_EPOCH,
            val_interval=ITERS_PER_EPOCH,
        )
    )
    hooks = [
        dict(type='RandomStateHook'),
        dict(type='AdaptiveDistillCoefHook'),
        dict(type='EMAHook', momentum=0.1),
        dict(type='PreemptionHook'),
    ]
    if signals:
        hooks.append(dict(type='SignalHook', **signals))
    optim_wrapper = dict(
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
        accumulative_counts=kwargs.pop('accumulative_counts', 1),
    )
    checkpoint = dict(
        type='SafeCheckpointHook',
        by_epoch=by_epoch,
        interval=interval,
        max_keep_ckpts=1,
        save_best='mAP',
    )
    student = dict(type='NoisyDetector', data_preprocessor=dict(type='DetDataPreprocessor'))
    settings = dict(
        model=dict(type='SSSDDistiller', student=student, distill_coef=2.0),
        hooks=hooks,
        train_cfg=train_cfg,
        train_dataloader=loader,
        schedulers=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
            dict(type='MultiStepLR', by_epoch=by_epoch, milestones=[interval], gamma=0.1),
        ],
        optim_wrapper=optim_wrapper,
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=checkpoint),
        val_dataloader=toy_loader(shuffle=False),
        val_cfg=dict(),
        val_evaluator=dict(type='ToyMetric'),
        resume=resume,
        experiment_name=f'{work_dir}{next(RUNS)}',
    )
    return toy_runner(work_dir, **(settings | kwargs))


def preempted(work_dir, numbers=(signal.SIGTERM,), train_iter=None, val_iter=None, **kwargs):
    """Train until a signal ends the run; give what it saved."""
    signals = dict(numbers=numbers, train_iter=train_iter, val_iter=val_iter)
    runner = make_runner(work_dir, signals=signals, **kwargs)
    with pytest.raises(SystemExit) as exit:
        runner.train()
    assert exit.value.code == PreemptionHook.EXIT_CODE == 75
    for number in (signal.SIGTERM, signal.SIGUSR1):
        assert signal.getsignal(number) == signal.SIG_IGN
    assert last_checkpoint(work_dir).name == 'preempted.pth'
    return load_from_local(str(work_dir / 'preempted.pth'))


@pytest.fixture(autouse=True)
def _signals_as_before():
    handlers = {x: signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Gives folders of runs that were left alone, each done once."""
    folders = {}

    def run(**kwargs):
        key = str(sorted(kwargs.items()))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp('whole')
            make_runner(folders[key], **kwargs).train()
        return folders[key]

    return run


def assert_equal_runs(ours, expected):
    """Compare all that the last checkpoints have, and which there are."""
    assert pth_files(ours) == pth_files(expected)
    paths = [last_checkpoint(folder) for folder in (ours, expected)]
    assert paths[0].name == paths[1].name
    ours, expected = (load_from_local(str(path)) for path in paths)
    hubs = ours.pop('message_hub'), expected.pop('message_hub')
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'} < expected.keys()
    for key in expected.keys() - {'meta'}:
        assert_equal_states(ours[key], expected[key], key)
    assert {k: ours['meta'][k] for k in ('epoch', 'iter')} == {
        k: expected['meta'][k] for k in ('epoch', 'iter')
    }
    for key, history in hubs[1]['log_scalars'].items():
        if 'time' not in key:
            assert_equal_states(hubs[0]['log_scalars'][key].data, history.data, key)
    for key in ('best_score', 'keep_ckpt_ids'):
        assert hubs[0]['runtime_info'][key] == hubs[1]['runtime_info'][key], key


LOOPS = ('epochs', 'iterations')
LAST_OF_EPOCH = ITERS_PER_EPOCH - 1


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize(
    'train_iter',
    [
        pytest.param(0, marks=SLOW),
        8,
        LAST_OF_EPOCH,
        pytest.param(2 * ITERS_PER_EPOCH - 1, marks=SLOW),
        EPOCHS * ITERS_PER_EPOCH - 1,
    ],
)
def test_a_preempted_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path, whole, loop, train_iter
):
    saved = preempted(tmp_path, train_iter=train_iter, loop=loop)
    assert saved['meta']['iter'] == train_iter + 1
    make_runner(tmp_path, loop, resume=True).train()
    assert_equal_runs(tmp_path, whole(loop=loop))


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize(
    'new_workers', [False, pytest.param(True, marks=SLOW)], ids=['kept', 'new']
)
def test_worker_processes_draw_the_same_numbers(tmp_path, whole, loop, new_workers):
    """Three times, in the second, the last but one and after the last batch of an epoch."""
    settings = dict(loop=loop, workers=2, new_workers=new_workers)
    for moment in (6, 9, 11):
        resume = moment > 6
        saved = preempted(tmp_path, train_iter=moment, resume=resume, **settings)
        assert saved['meta']['iter'] == moment + 1
        assert saved['random_state']['workers'].keys() <= {0, 1}
    make_runner(tmp_path, resume=True, **settings).train()
    assert_equal_runs(tmp_path, whole(**settings))


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('batch', [0, pytest.param(ITERS_PER_EPOCH - 1, marks=SLOW)])
@pytest.mark.parametrize('epoch', [2, pytest.param(EPOCHS, marks=SLOW)])
def test_a_validation_is_left_and_done_when_the_run_is_resumed(
    tmp_path, whole, loop, batch, epoch
):
    moment = epoch * ITERS_PER_EPOCH
    saved = preempted(tmp_path, val_iter=(moment, batch), loop=loop)
    assert saved['meta']['iter'] == moment
    assert saved['preemption'] == dict(validates_first=True)
    make_runner(tmp_path, loop, resume=True).train()
    assert_equal_runs(tmp_path, whole(loop=loop))
