"""Runs resumed from checkpoints, their own or others."""

from itertools import count
from unittest import mock

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.checkpoints import CheckTrainHook
from mmdet_sssd.checks.dry_run import warnings_listed
from mmdet_sssd.runs import load_from_local

from ..toy_detector import NUM_IMAGES, TOY_MODEL, toy_loader, toy_runner

RUNS = count()


def resume(tmp_path, path=None, lr=0.1, epochs=1, work_dir=None, **kwargs) -> list[str]:
    """Train, from a checkpoint if one is given, and list the warnings."""
    settings = dict(
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr), clip_grad=dict(max_norm=0.1)),
        schedulers=[dict(type='MultiStepLR', milestones=[3 * epochs])],
    )
    runner = toy_runner(
        work_dir or tmp_path / f'run {next(RUNS)}',
        hooks=[CheckTrainHook()],
        epochs=epochs,
        **dict(load_from=path and str(path), resume=path is not None, **settings) | kwargs,
    )
    runner.cfg = Config({**settings, 'param_scheduler': settings['schedulers']})
    with warnings_listed() as warnings:
        runner.train()
    return [x for x in warnings if 'resumed run' in x or 'nothing is left' in x]


@pytest.fixture
def checkpoint(tmp_path):
    """The checkpoint of a run of one epoch."""
    assert resume(tmp_path) == []
    (path,) = tmp_path.glob('run */epoch_1.pth')
    return path


def test_settings_that_a_resumed_run_takes_from_its_checkpoint_are_named(tmp_path, checkpoint):
    lr, milestones = resume(tmp_path, checkpoint, lr=0.2, epochs=2)
    assert lr.startswith('optim_wrapper.optimizer.lr is 0.2, but a resumed run')
    assert (
        f'its checkpoint, 0.1. For another one start a new run with load_from={checkpoint}.' in lr
    )
    assert milestones.startswith('param_scheduler.0.milestones is [6], but')


def test_a_checkpoint_that_mmengine_finds_is_named(tmp_path, checkpoint):
    found = resume(tmp_path, lr=0.2, resume=True, work_dir=checkpoint.parent)
    assert f'load_from={checkpoint}' in found[0]


def test_a_complete_run_says_so(tmp_path, checkpoint):
    (message,) = resume(tmp_path, checkpoint)
    assert 'the end of the run, 1 of 1 epochs: nothing is left to train. ' in message
    assert message.endswith('raise train_cfg.max_epochs.')


def test_an_epoch_without_a_batch_is_refused(tmp_path):
    loader = toy_loader() | dict(batch_size=2 * NUM_IMAGES, drop_last=True)
    with pytest.raises(ConfigError, match=f'no batch of its {NUM_IMAGES} images'):
        resume(tmp_path, train_dataloader=loader)


def test_weights_alone_are_refused(tmp_path, checkpoint):
    weights = load_from_local(str(checkpoint))['state_dict']
    torch.save({'state_dict': weights, 'meta': {}}, tmp_path / 'weights.pth')
    with pytest.raises(
        ConfigError, match=r'^--resume: .*weights\.pth has no message_hub and no opt'
    ):
        resume(tmp_path, tmp_path / 'weights.pth')


def test_a_stock_detector_does_not_start_without_the_weights_it_was_given(tmp_path, checkpoint):
    stock = TOY_MODEL['student']
    with pytest.raises(ConfigError, match=r'^load_from: none of the \d+ weights .* export folder$'):
        resume(tmp_path, checkpoint, model=stock, resume=False)
    weights = load_from_local(str(checkpoint))['state_dict']
    some = {'neck.weight': weights['student.neck.weight']}
    torch.save(some, tmp_path / 'some.pth')
    assert resume(tmp_path, tmp_path / 'some.pth', model=stock, resume=False) == []
    torch.save({'other': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(ConfigError, match=r'has other, the detector backbone\.bias$'):
        resume(tmp_path, tmp_path / 'other.pth', model=stock, resume=False)


def test_a_semi_supervised_detector_of_mmdet_s_starts_from_a_plain_one():
    detector = TOY_MODEL['student']
    semi = MODELS.build(dict(type='SemiBaseDetector', detector=detector, semi_train_cfg={}))
    runner = mock.Mock(model=semi, _resume=False)
    plain = MODELS.build(detector).state_dict()
    CheckTrainHook().after_load_checkpoint(runner, dict(state_dict=plain))
    assert not semi.load_state_dict(plain, strict=False).missing_keys


def test_a_checkpoint_of_another_model_is_refused(tmp_path, checkpoint):
    other = dict(TOY_MODEL, teacher=dict(refine_convs=4))
    with pytest.raises(ConfigError, match=r'^--resume: .*epoch_1\.pth does not fit .* is missing'):
        resume(tmp_path, checkpoint, model=other)
