"""Runs that get a signal, in this process, and what they come to when they are resumed."""

import os
import signal
import time
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context

import pytest
from mmengine.hooks import Hook
from torch.utils.data._utils import signal_handling

from mmdet_sssd import ConfigError
from mmdet_sssd.runs import PreemptionHook, load_from_local

from ..tools.run_comparison import assert_equal_states
from .stock_runs import (
    EPOCH,
    LAST,
    NUM_EPOCHS,
    NUM_VAL_BATCHES,
    assert_equal_runs,
    last_checkpoint,
    make_runner,
    pth_files,
    train,
)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SLOW = pytest.mark.slow
LAST_BATCH = NUM_VAL_BATCHES - 1
LOOPS = dict(epochs=2, iterations=2 * EPOCH)  # with the interval of checkpoints, in units of each


def distilled(loop, **settings):
    """What the runs have in common: validation is more frequent than checkpoints."""
    checkpoint = dict(interval=LOOPS[loop], max_keep_ckpts=1, save_best='mAP')
    return dict(case='distilled', loop=loop, checkpoint=checkpoint) | settings


@contextmanager
def handlers_kept():
    """Handle signals afterwards as before."""
    handlers = {x: signal.getsignal(x) for x in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def preempted(work_dir, numbers=(signal.SIGTERM,), train_iter=None, val_iter=None, **settings):
    """Train until a signal ends the run; give what it saved."""
    signals = dict(numbers=numbers, train_iter=train_iter, val_iter=val_iter)
    with handlers_kept():
        with pytest.raises(SystemExit) as exit:
            train(work_dir, signals=signals, **settings)
        assert {signal.getsignal(x) for x in SIGNALS} == {signal.SIG_IGN}
    assert exit.value.code == PreemptionHook.EXIT_CODE == 75
    return load_from_local(str(last_checkpoint(work_dir)))


def assert_resumed_to_the_bit(work_dir, whole, **settings):
    train(work_dir, resume=True, **settings)
    assert_equal_runs(work_dir, whole(**settings))
    assert pth_files(work_dir) == pth_files(whole(**settings))


@pytest.fixture(autouse=True)
def _signals_as_before():
    with handlers_kept():
        yield


QUICK = [*(('epochs', i) for i in (EPOCH - 1, EPOCH + 1, LAST - 1)), ('iterations', EPOCH + 1)]
MOMENTS = [*product(LOOPS, (0, EPOCH - 1, EPOCH + 1, 2 * EPOCH - 1, LAST - 1))]


@pytest.mark.parametrize(
    ('loop', 'train_iter'),
    [pytest.param(*x, marks=[] if x in QUICK else SLOW) for x in MOMENTS],
)
def test_preempted_and_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, loop, train_iter):
    saved = preempted(tmp_path, train_iter=train_iter, **distilled(loop))
    assert saved['meta']['iter'] == train_iter + 1
    assert_resumed_to_the_bit(tmp_path, whole, **distilled(loop))


@pytest.mark.parametrize('loop', [pytest.param('epochs', marks=SLOW), 'iterations'])
@pytest.mark.parametrize('persistent', [True, pytest.param(False, marks=SLOW)])
def test_workers_of_a_run_preempted_three_times_draw_the_same(tmp_path, whole, loop, persistent):
    """In the second, the last but one and after the last batch of an epoch."""
    settings = distilled(loop, workers=2, persistent=persistent)
    for moment in (EPOCH + 1, 2 * EPOCH - 2, 2 * EPOCH - 1):
        resume = moment > EPOCH + 1
        saved = preempted(tmp_path, train_iter=moment, resume=resume, **settings)
        assert saved['meta']['iter'] == moment + 1
        assert saved['random_state']['workers'].keys() <= {0, 1}
    assert_resumed_to_the_bit(tmp_path, whole, **settings)


@pytest.mark.parametrize('persistent', [True, False])
def test_a_signal_while_workers_start_does_not_end_them(tmp_path, monkeypatch, persistent):
    """Schedulers send it to all processes; here a worker gets it before it runs any code of ours."""
    handle = signal_handling._set_worker_signal_handlers

    def handle_and_get_signals():
        handle()
        for number in SIGNALS:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(signal_handling, '_set_worker_signal_handlers', handle_and_get_signals)
    train(tmp_path, workers=2, persistent=persistent)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@pytest.mark.parametrize('names', [True, pytest.param(False, marks=SLOW)])
def test_a_preempted_run_goes_on_in_another_folder(tmp_path, whole, names):
    """Whose file of names, if it is there, has the old folder's."""
    preempted(tmp_path / 'a', train_iter=EPOCH + 1, **distilled('epochs'))
    (tmp_path / 'a').rename(tmp_path / 'b')
    if not names:
        (tmp_path / 'b/last_checkpoint').unlink()
    saved = load_from_local(str(tmp_path / 'b/preempted.pth'))
    runner = make_runner(tmp_path / 'b', resume=True, **distilled('epochs'))
    runner.train()
    assert saved['meta']['iter'] == EPOCH + 2
    assert runner._load_from == str(tmp_path / 'b/preempted.pth')
    assert_equal_runs(tmp_path / 'b', whole(**distilled('epochs')))


def test_a_run_whose_checkpoints_lack_the_optimizer_is_saved_whole(tmp_path, whole):
    settings = distilled('epochs', checkpoint=dict(save_optimizer=False, interval=1))
    saved = preempted(tmp_path, train_iter=EPOCH - 1, **settings)
    assert saved['optimizer']
    assert last_checkpoint(tmp_path).name == 'preempted.pth'
    train(tmp_path, resume=True, **settings)
    expected, found = (
        load_from_local(str(last_checkpoint(x))) for x in (whole(**settings), tmp_path)
    )
    assert_equal_states(found['state_dict'], expected['state_dict'])


def test_a_validation_is_left_while_gradients_wait(tmp_path, whole):
    settings = distilled('epochs', case='accumulation')
    saved = preempted(tmp_path, val_iter=(EPOCH, 0), **settings)
    assert saved['meta']['iter'] == EPOCH
    assert_resumed_to_the_bit(tmp_path, whole, **settings)


@pytest.mark.parametrize('loop', ['epochs', pytest.param('iterations', marks=SLOW)])
def test_accumulated_gradients_are_not_lost(tmp_path, whole, loop):
    """Of three iterations each."""
    settings = distilled(loop, case='accumulation')
    saved = preempted(tmp_path, train_iter=EPOCH, **settings)
    assert saved['meta']['iter'] == 6
    assert_resumed_to_the_bit(tmp_path, whole, **settings)


@pytest.mark.parametrize(
    ('loop', 'batch', 'epoch'),
    [
        ('epochs', 0, 2),
        *(pytest.param(*x, marks=SLOW) for x in product(LOOPS, (0, LAST_BATCH), (1, NUM_EPOCHS))),
    ],
)
def test_a_validation_is_left_and_done_when_the_run_is_resumed(tmp_path, whole, loop, batch, epoch):
    moment = epoch * EPOCH
    saved = preempted(tmp_path, val_iter=(moment, batch), **distilled(loop))
    assert saved['meta']['iter'] == moment
    assert saved['meta']['validates_first']
    is_saved_already = epoch in (2, NUM_EPOCHS)
    assert (tmp_path / 'preempted.pth').exists() != is_saved_already
    assert_resumed_to_the_bit(tmp_path, whole, **distilled(loop))


def test_the_user_is_told_how_to_continue(tmp_path, capfd):
    preempted(tmp_path, [signal.SIGINT], train_iter=2)
    assert 'a second signal ends it at once' in capfd.readouterr().err
    (log,) = tmp_path.glob('*/*.log')
    assert f'Saved {tmp_path}/preempted.pth; continue with --resume' in log.read_text()


@pytest.mark.parametrize(
    ('numbers', 'code'),
    [
        ([signal.SIGUSR1, signal.SIGINT], -signal.SIGINT),
        ([signal.SIGTERM, signal.SIGUSR2], PreemptionHook.EXIT_CODE),  # both from a scheduler
    ],
)
def test_a_second_signal_ends_the_run_at_once(tmp_path, numbers, code):
    settings = dict(signals=dict(numbers=numbers, train_iter=2))
    # not a fork: the tests' own threads may hold locks that it would keep
    context = get_context('forkserver')
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
    runner.model.loss = None
    with pytest.raises(TypeError):
        runner.train()
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


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
    runner = make_runner(tmp_path)
    runner.register_hook(hook)
    runner.train()
    assert hook.exitcode == -signal.SIGTERM
