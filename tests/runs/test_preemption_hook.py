"""Runs that get a signal, in this process, and what they come to when they are resumed."""

import os
import pickle
import random
import signal
import time
from itertools import count
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.hooks import Hook
from torch.utils.data._utils import signal_handling

from mmdet_sssd import ConfigError
from mmdet_sssd.runs import PreemptionHook, load_from_local

from ..tools import interruption  # noqa: F401  (registers SignalHook)
from ..tools.run_comparison import assert_equal_states
from ..toy_detector import ITERS_PER_EPOCH, ToyDataset, ToyDetector, toy_loader, toy_runner
from .test_safe_checkpoint_hook import last_checkpoint, pth_files

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
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


def train(*args, **kwargs):
    """Train to the end, and end the workers: the collector of garbage waits for each of them."""
    runner = make_runner(*args, **kwargs)
    try:
        runner.train()
    finally:
        if iterator := runner.train_dataloader._iterator:
            iterator._shutdown_workers()
    return runner


def preempted(work_dir, numbers=(signal.SIGTERM,), train_iter=None, val_iter=None, **kwargs):
    """Train until a signal ends the run; give what it saved."""
    signals = dict(numbers=numbers, train_iter=train_iter, val_iter=val_iter)
    handlers = {x: signal.getsignal(x) for x in SIGNALS}
    with pytest.raises(SystemExit) as exit:
        train(work_dir, signals=signals, **kwargs)
    assert exit.value.code == PreemptionHook.EXIT_CODE == 75
    for number, handler in handlers.items():
        assert signal.getsignal(number) == signal.SIG_IGN
        signal.signal(number, handler)
    return load_from_local(str(last_checkpoint(work_dir)))


@pytest.fixture(autouse=True)
def _signals_as_before():
    handlers = {x: signal.getsignal(x) for x in SIGNALS}
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
            train(folders[key], **kwargs)
        return folders[key]

    return run


def assert_equal_runs(ours, expected):
    """Compare all that the last checkpoints have, and which there are."""
    assert pth_files(ours) == pth_files(expected)
    paths = [last_checkpoint(folder) for folder in (ours, expected)]
    assert paths[0].name == paths[1].name
    ours, expected = (load_from_local(str(path)) for path in paths)
    for checkpoint in (ours, expected):
        workers = checkpoint['random_state']['workers']
        checkpoint['random_state']['workers'] = {k: pickle.loads(x) for k, x in workers.items()}
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
    assert len({hub['runtime_info']['best_score'] for hub in hubs}) == 1
    assert len({hub['runtime_info']['keep_ckpt_ids'][-1] for hub in hubs}) == 1


LOOPS = ('epochs', 'iterations')
LAST_OF_EPOCH = ITERS_PER_EPOCH - 1


@pytest.mark.parametrize(
    ('loop', 'train_iter'),
    [
        ('epochs', 8),
        ('epochs', LAST_OF_EPOCH),
        ('epochs', EPOCHS * ITERS_PER_EPOCH - 1),
        ('iterations', 8),
        *(pytest.param('epochs', i, marks=SLOW) for i in (0, 2 * ITERS_PER_EPOCH - 1)),
        *(pytest.param('iterations', i, marks=SLOW) for i in (0, LAST_OF_EPOCH, 11, 23)),
    ],
)
def test_a_preempted_and_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, loop, train_iter):
    saved = preempted(tmp_path, train_iter=train_iter, loop=loop)
    assert saved['meta']['iter'] == train_iter + 1
    train(tmp_path, loop, resume=True)
    assert_equal_runs(tmp_path, whole(loop=loop))


@pytest.mark.parametrize('loop', [pytest.param('epochs', marks=SLOW), 'iterations'])
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
    train(tmp_path, resume=True, **settings)
    assert_equal_runs(tmp_path, whole(**settings))


@pytest.mark.parametrize('new_workers', [False, True], ids=['kept', 'new'])
def test_a_signal_that_comes_while_workers_start_does_not_end_them(
    tmp_path, monkeypatch, new_workers
):
    """Schedulers send it to all processes; here a worker gets it before it runs any code of ours."""
    handle = signal_handling._set_worker_signal_handlers

    def handle_and_get_signals():
        handle()
        for number in SIGNALS:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(signal_handling, '_set_worker_signal_handlers', handle_and_get_signals)
    train(tmp_path, workers=2, new_workers=new_workers)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@pytest.mark.parametrize('loop', ['epochs', pytest.param('iterations', marks=SLOW)])
def test_accumulated_gradients_are_not_lost(tmp_path, whole, loop):
    """Of four iterations each; the epoch ends in the second of them."""
    settings = dict(loop=loop, accumulative_counts=4)
    saved = preempted(tmp_path, train_iter=4, **settings)
    assert saved['meta']['iter'] == 8
    train(tmp_path, resume=True, **settings)
    assert_equal_runs(tmp_path, whole(**settings))


@pytest.mark.parametrize(
    ('loop', 'batch', 'epoch'),
    [
        ('epochs', 0, 2),
        *(
            pytest.param(loop, batch, epoch, marks=SLOW)
            for loop in LOOPS
            for batch in (0, ITERS_PER_EPOCH - 1)
            for epoch in (2, EPOCHS)
            if (loop, batch, epoch) != ('epochs', 0, 2)
        ),
    ],
)
def test_a_validation_is_left_and_done_when_the_run_is_resumed(tmp_path, whole, loop, batch, epoch):
    moment = epoch * ITERS_PER_EPOCH
    saved = preempted(tmp_path, val_iter=(moment, batch), loop=loop)
    assert saved['meta']['iter'] == moment
    assert saved['meta']['validates_first']
    is_saved_already = epoch in (2, EPOCHS)
    assert (tmp_path / 'preempted.pth').exists() != is_saved_already
    train(tmp_path, loop, resume=True)
    assert_equal_runs(tmp_path, whole(loop=loop))


def test_the_user_is_told_how_to_continue(tmp_path, capfd):
    preempted(tmp_path, [signal.SIGINT], train_iter=2)
    assert 'a second signal ends it at once' in capfd.readouterr().err
    (log,) = tmp_path.glob('*/*.log')
    assert f'Saved {tmp_path}/preempted.pth; continue with --resume' in log.read_text()


@pytest.mark.parametrize(
    ('numbers', 'code'),
    [
        ([signal.SIGINT, signal.SIGINT], -signal.SIGINT),
        ([signal.SIGUSR1, signal.SIGINT], -signal.SIGINT),
        ([signal.SIGTERM, signal.SIGTERM], PreemptionHook.EXIT_CODE),  # forwarded by a launcher
        ([signal.SIGTERM, signal.SIGUSR2], PreemptionHook.EXIT_CODE),  # both from a scheduler
    ],
)
def test_a_second_signal_ends_the_run_at_once(tmp_path, numbers, code):
    settings = dict(signals=dict(numbers=numbers, train_iter=2))
    context = get_context(
        'forkserver'
    )  # the tests' own threads may hold locks that a fork would keep
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train, args=(tmp_path,), kwargs=settings)
    process.start()
    process.join()
    assert process.exitcode == code
    assert pth_files(tmp_path) == ({'preempted.pth'} if code > 0 else set())


def test_signals_belong_to_others_before_and_after_training(tmp_path):
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    handlers = [signal.getsignal(x) for x in SIGNALS]
    signals = dict(numbers=[signal.SIGUSR1], train_iter=2)  # ignored, as by nohup
    train(tmp_path, signals=signals)
    assert [signal.getsignal(x) for x in SIGNALS] == handlers

    runner = make_runner(tmp_path / 'failing')
    runner.model.student.loss = None
    with pytest.raises(TypeError):
        runner.train()
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_files_of_an_aborted_run_are_removed(tmp_path):
    (tmp_path / 'preempted.pth').touch()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    runner = make_runner(tmp_path)
    runner.train()
    assert not (tmp_path / 'preempted.pth').exists()


@pytest.mark.parametrize('lacking', ['RandomStateHook', 'SafeCheckpointHook'])
def test_it_needs_the_hooks_that_make_a_run_go_on(tmp_path, lacking):
    runner = make_runner(tmp_path)
    runner._hooks = [x for x in runner.hooks if type(x).__name__ != lacking]
    with pytest.raises(ConfigError, match=f'PreemptionHook needs the hook {lacking}'):
        runner.train()
    assert runner.iter == 0


class PoolHook(Hook):
    """Starts a process and ends it as a pool does, such as that of ``VOCMetric``."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter > 0:
            return
        process = get_context('fork').Process(target=time.sleep, args=(60,))
        process.start()
        time.sleep(0.1)
        process.terminate()
        process.join(10)
        self.exitcode = process.exitcode
        process.kill()


def test_processes_that_a_metric_forks_end_by_sigterm(tmp_path):
    """Else its pool waits for them for ever."""
    hook = PoolHook()
    runner = make_runner(tmp_path, loop='iterations')
    runner.register_hook(hook)
    runner.train()
    assert hook.exitcode == -signal.SIGTERM
