"""A step of mmdet's own detectors, stock and distilled: small ones of every kind."""

import pytest
from mmengine.config import Config

from mmdet_sssd.models import SSSDDistiller

from .. import toy_detector  # noqa: F401  (registers ToyDetector)
from ..distillers import TOY
from ..studies import detectors

CONFIGS = {  # with the channels of their feature levels
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py': (96, 96, 96),
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py': (96, 1280, 512, 256, 256, 128),
    'yolox/yolox_nano_8xb8-300e_coco.py': (64, 64, 64),
    'centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py': (64,),
    'detr/detr_r18_8xb2-500e_coco.py': (256,),
    'yolof/yolof_r50-c5_8xb8-1x_coco.py': (512,),
    'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py': (96, 96, 96),
    'solov2/solov2-light_r18_fpn_ms-3x_coco.py': (256,) * 5,
    'maskformer/maskformer_r50_ms-16xb1-75e_coco.py': (256, 512, 1024, 2048),
    'rpn/rpn_r50_fpn_1x_coco.py': (256,) * 5,
}


@pytest.mark.parametrize(
    'config',
    [pytest.param(x, marks=pytest.mark.slow if 'r50' in x or 'solo' in x else []) for x in CONFIGS],
)
def test_mmdet_s_detectors_are_distilled(config):
    result = detectors.check_config(detectors.STOCK_CONFIGS / config)
    assert result.stock.startswith('ok'), result
    assert (result.distilled, result.levels) == ('ok', CONFIGS[config])


@pytest.mark.parametrize(
    ('broken', 'expected'),
    [
        ('loss', 'loss_cls differs'),
        ('student', 'parameters of the student lack a gradient, such as neck.'),
        ('adapter', 'parameters of the terms lack a gradient, such as distill.adapter.convs.'),
    ],
)
def test_what_differs_is_named(broken, expected, monkeypatch, tmp_path):
    Config(dict(model=TOY)).dump(tmp_path / 'toy.py')
    original = SSSDDistiller.loss

    def loss(self, batch_inputs, batch_data_samples):
        if broken == 'student':
            self.student.neck.requires_grad_(False)
        losses = original(self, batch_inputs, batch_data_samples)
        if broken == 'loss':
            losses['loss_cls'] = losses['loss_cls'] + 1
        if broken == 'adapter':
            losses.pop('loss_distill')
        return losses

    monkeypatch.setattr(SSSDDistiller, 'loss', loss)
    assert expected in detectors.check_config(tmp_path / 'toy.py').distilled
