"""Exponential moving averages of a detector that is trained with its teacher."""

import torch
from mmdet.registry import MODELS
from mmengine.hooks import EMAHook
from mmengine.runner import save_checkpoint

from mmdet_sssd.runs import load_from_local

from ..distillers import SSIM, TOY, assert_equal, pretrained
from ..toy_detector import toy_runner


def test_no_average_moves_a_pretrained_teacher(tmp_path):
    """ExpMomentumEMA, of stock YOLOX and RTMDet, scales the average in place before it adds."""
    weights = MODELS.build(TOY).state_dict()
    save_checkpoint(dict(state_dict=weights), str(tmp_path / 'teacher.pth'))
    teacher = {**pretrained(), 'checkpoint': str(tmp_path / 'teacher.pth')}
    model = dict(type='Distiller', student=TOY, teachers=dict(a=teacher), terms=dict(ssim=SSIM))
    ema = dict(type='EMAHook', ema_type='ExpMomentumEMA', update_buffers=True)
    runner = toy_runner(tmp_path, model=model, hooks=[ema], epochs=3)
    runner.train()
    assert_equal(dict(runner.model.teachers['a'].detector.state_dict()), dict(weights))
    checkpoint = load_from_local(str(tmp_path / 'epoch_3.pth'))
    keys = [*checkpoint['state_dict'], *checkpoint['ema_state_dict']]
    assert {x.removeprefix('module.').partition('.')[0] for x in keys} == {'student', 'steps'}


def test_averages_start_from_a_stock_checkpoint(tmp_path):
    torch.manual_seed(5)
    stock = MODELS.build(dict(type='ToyDetector'))
    save_checkpoint(dict(state_dict=stock.state_dict()), str(tmp_path / 'stock.pth'))
    ema = dict(type='EMAHook', update_buffers=True)
    runner = toy_runner(tmp_path, hooks=[ema], load_from=str(tmp_path / 'stock.pth'))
    runner.call_hook('before_run')
    runner.load_or_resume()
    (hook,) = (x for x in runner.hooks if isinstance(x, EMAHook))
    for model in (runner.model, hook.ema_model.module):
        assert_equal(dict(model.student.state_dict()), dict(stock.state_dict()))
