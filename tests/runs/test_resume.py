"""Runs that end at once are resumed, and compared to the bit with those that were left alone."""

import math

import pytest
import torch

from mmdet_sssd import ConfigError
from mmdet_sssd.runs import load_from_local

from .stock_runs import (
    BATCH_SIZE,
    EPOCH,
    LAST,
    Killed,
    assert_equal_runs,
    last_checkpoint,
    make_runner,
    train,
)

SWITCHES = ('PipelineSwitch', 'YOLOXModeSwitch')  # of pipelines, which workers have
SAMPLERS = (
    'Default',
    'ClassAware',
    'AspectRatio',
    'CustomSampleSize',
    'GroupMultiSource',
    'FirstOnly',
)


def kill(*args, **kwargs):
    with pytest.raises(Killed):
        train(*args, **kwargs)


def assert_resumed_to_the_bit(tmp_path, whole, killed_before, *case, checkpoint=None, **kwargs):
    kill(tmp_path, *case, killed_before=killed_before, checkpoint=checkpoint, **kwargs)
    train(tmp_path, *case, resume=True, checkpoint=checkpoint)
    assert_equal_runs(tmp_path, whole(*case))


@pytest.mark.parametrize(
    ('killed_before', 'case'),
    [
        *((before, (x, 'epochs', 'Default', 2)) for x in SWITCHES for before in (9, 13)),
        (9, ('BatchSyncRandomResize',)),  # settings that follow what was seen
        (9, ('DynamicRoIHead',)),
        (5, ('accumulation',)),
        (5, ('EarlyStopping',)),
        (9, ('EarlyStopping',)),
        *((10, ('nothing', 'iterations', x)) for x in SAMPLERS),
        (10, ('nothing', 'epochs', 'CustomSampleSize')),  # which has a state of its own
    ],
    ids=str,
)
def test_a_killed_run_goes_on_as_one_that_was_left_alone(tmp_path, whole, killed_before, case):
    assert_resumed_to_the_bit(tmp_path, whole, killed_before, *case)


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
@pytest.mark.parametrize('iteration', [EPOCH, LAST])
def test_validation_in_which_a_run_was_killed(tmp_path, whole, loop, iteration):
    case = 'nothing', loop
    assert_resumed_to_the_bit(tmp_path, whole, iteration, *case, killed_in_validation=True)


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_a_scheduler_counts_a_validation_once(tmp_path, whole, loop):
    """The best one, whose checkpoint is saved after it and repeats it when resumed."""
    case, saving = ('ReduceOnPlateau', loop), dict(checkpoint=dict(save_best='mAP'))
    kill(tmp_path, *case, killed_before=2 * EPOCH, **saving)
    train(tmp_path, *case, resume=True, **saving)
    assert_equal_runs(tmp_path, whole(*case, **saving))


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_end_of_training_is_saved_whatever_ended_it(tmp_path, whole, loop):
    case = 'EarlyStopping', loop
    runner = train(tmp_path, *case, checkpoint=dict(interval=100))
    assert runner.iter < LAST
    assert_equal_runs(tmp_path, whole(*case))
    resumed = train(tmp_path, *case, resume=True)
    assert resumed.iter == runner.iter
    counts = [x.wait_count for y in (runner, resumed) for x in y.hooks if hasattr(x, 'wait_count')]
    assert counts == [2, 2]  # the validation that is done again counts once


def test_a_validation_alone_needs_no_schedule(tmp_path):
    runner = make_runner(tmp_path)
    runner.message_hub.update_info('iter', EPOCH)  # for the metric
    assert runner.val() == {'mAP': 0.1}


def test_loss_that_stays_infinite_ends_the_run(tmp_path):
    runner = make_runner(tmp_path)
    loss = runner.model.loss
    runner.model.loss = lambda *args: {k: x + math.inf for k, x in loss(*args).items()}
    with pytest.raises(ConfigError, match='loss_cls'):
        runner.train()
    assert runner.iter < LAST - 1


@pytest.mark.parametrize('case', [('accumulation',), ('nothing', 'iterations')])
def test_resume_warns_of_nothing_untrue(tmp_path, capsys, case):
    kill(tmp_path, *case, killed_before=5)
    path = last_checkpoint(tmp_path)
    saved = load_from_local(str(path))
    saved['message_hub']['resumed_keys']['train/of_a_part_at_rest'] = True
    torch.save(saved, path)
    capsys.readouterr()
    train(tmp_path, *case, resume=True)
    printed = ''.join(capsys.readouterr())
    assert 'Resuming from' in printed
    for untrue in ('not defined in message_hub', 'gradient of some', 'Advance dataloader'):
        assert untrue not in printed


def test_another_number_of_iterations_in_an_epoch(tmp_path, capsys):
    """As on another number of processes: iterations are counted anew, schedules of them go on."""
    schedulers = [dict(type='MultiStepLR', by_epoch=False, milestones=[2 * EPOCH + 2])]
    kill(tmp_path, 'accumulation', killed_before=2 * EPOCH + 2, checkpoint=dict(interval=2))
    path, half = last_checkpoint(tmp_path), dict(resume=True, batch_size=2 * BATCH_SIZE)
    runner = train(tmp_path / 'as before', 'accumulation', load_from=str(path), **half)
    assert load_from_local(str(path))['meta']['iter'] == 2 * EPOCH
    assert runner.iter == LAST // 2
    warning = f'An epoch has {EPOCH // 2} iterations, but had {EPOCH} when the'
    assert warning in (printed := ''.join(capsys.readouterr()))
    assert 'their schedules count iterations' not in printed
    kill(tmp_path, killed_before=EPOCH + 1, schedulers=schedulers)
    train(tmp_path, schedulers=schedulers, **half)
    assert 'their schedules count iterations' in ''.join(capsys.readouterr())
