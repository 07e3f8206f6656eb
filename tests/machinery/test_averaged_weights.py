"""Exponential moving averages of a detector that is trained with its teacher."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import save_checkpoint

from mmdet_sssd.runs import load_from_local

from ..distillers import SSIM, TOY, assert_equal, pretrained
from ..toy_detector import toy_runner

MOMENTUM = 0.25
EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=3)
DROP = dict(type='MultiStepLR', milestones=[2], gamma=0.1)


class AverageByHand(Hook):
    """Averages the weights after each iteration, as a second opinion."""

    priority = 'LOW'  # EMAHook's is NORMAL

    def __init__(self):
        self.average = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for key, value in runner.model.state_dict().items():
            if key not in self.average:  # the first average is a copy
                self.average[key] = value.clone()
            self.average[key] += MOMENTUM * (value - self.average[key])


def averaging_runner(work_dir, **kwargs):
    by_hand = AverageByHand()
    hooks = [
        dict(type='EMAHook', momentum=MOMENTUM, update_buffers=True),
        dict(type='AdaptiveDistillCoefHook'),
        by_hand,
    ]
    runner = toy_runner(work_dir, hooks=hooks, train_cfg=EPOCHS, schedulers=[DROP], **kwargs)
    return runner, by_hand


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('averaged')
    runner, by_hand = averaging_runner(folder)
    runner.train()
    return folder, runner, by_hand


def test_student_teacher_and_adapter_are_averaged_and_distill_coef_is_not(uninterrupted):
    folder, runner, by_hand = uninterrupted
    saved = load_from_local(str(folder / 'epoch_3.pth'))['state_dict']
    assert saved.keys() == by_hand.average.keys() == runner.model.state_dict().keys()
    for key, value in by_hand.average.items():
        torch.testing.assert_close(saved[key], value, msg=key)
    assert runner.model.terms['distill'].distill_coef == 4.0  # 2, doubled at the drop


def test_a_resumed_run_ends_with_the_same_averages(uninterrupted, tmp_path):
    folder, *_ = uninterrupted
    runner, _ = averaging_runner(tmp_path, resume=True, load_from=str(folder / 'epoch_2.pth'))
    runner.train()
    assert len(runner.message_hub.log_scalars['train/loss'].data[0]) == 18
    ours, whole = (load_from_local(str(x / 'epoch_3.pth')) for x in (tmp_path, folder))
    for key in ('state_dict', 'ema_state_dict'):
        assert_equal(dict(ours[key]), dict(whole[key]))


@pytest.mark.parametrize('ema_type', ['ExponentialMovingAverage', 'ExpMomentumEMA'])
def test_no_average_moves_a_pretrained_teacher(tmp_path, ema_type):
    """ExpMomentumEMA, of stock YOLOX and RTMDet, scales the average in place before it adds."""
    weights = MODELS.build(TOY).state_dict()
    save_checkpoint(dict(state_dict=weights), str(tmp_path / 'teacher.pth'))
    teacher = {**pretrained(), 'checkpoint': str(tmp_path / 'teacher.pth')}
    model = dict(type='Distiller', student=TOY, teachers=dict(a=teacher), terms=dict(ssim=SSIM))
    ema = dict(type='EMAHook', ema_type=ema_type, update_buffers=True)
    runner = toy_runner(tmp_path, model=model, hooks=[ema], train_cfg=EPOCHS)
    runner.train()
    assert_equal(dict(runner.model.teachers['a'].detector.state_dict()), dict(weights))
    checkpoint = load_from_local(str(tmp_path / 'epoch_3.pth'))
    keys = [*checkpoint['state_dict'], *checkpoint['ema_state_dict']]
    assert {x.removeprefix('module.').partition('.')[0] for x in keys} == {'student', 'steps'}


def test_averages_start_from_a_stock_checkpoint(tmp_path):
    torch.manual_seed(5)
    stock = MODELS.build(dict(type='ToyDetector'))
    save_checkpoint(dict(state_dict=stock.state_dict()), str(tmp_path / 'stock.pth'))
    runner, _ = averaging_runner(tmp_path, load_from=str(tmp_path / 'stock.pth'))
    runner.call_hook('before_run')
    runner.load_or_resume()
    (hook,) = (x for x in runner.hooks if isinstance(x, EMAHook))
    for model in (runner.model, hook.ema_model.module):
        assert_equal(dict(model.student.state_dict()), dict(stock.state_dict()))
