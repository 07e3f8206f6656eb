"""Optimizer settings by parameter: a distilled student has those of the stock detector."""

import pytest
import torch
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as StockConstructor
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from ..stock_detectors import shallow_resnets, stock_config

SETTINGS = {
    'layer_wise': dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6),
    'stage_wise': dict(decay_rate=0.5, decay_type='stage_wise', num_layers=6),
}
CONFIGS = {  # how many different (lr, weight decay) stock mmdet's settings give
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': 3,
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': 2,
    'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py': 3,
}


def parameter_settings(optim_wrapper: OptimWrapper, model: nn.Module) -> dict[str, dict]:
    """Read off each parameter's settings (lr, weight_decay …), by its name in the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {
            key: value for key, value in group.items() if key not in ('params', 'param_names')
        }
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }


@MODELS.register_module()
class ConvNeXt(nn.Module):
    """Has the class and layer names that mmdet's constructor looks for, and no more than that."""

    def __init__(self):
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(channels, 8, 3, stride, 1)
            for channels, stride in zip((3, 8, 8, 8), (4, 2, 2, 2), strict=True)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8)) for _ in range(n))
            for n in (1, 1, 4, 1)
        )

    def forward(self, x):
        outs = []
        for downsample, blocks in zip(self.downsample_layers, self.stages, strict=True):
            x = nn.Sequential(downsample, *blocks)(x)
            outs.append(x)
        return outs


@pytest.mark.parametrize('decay_type', SETTINGS)
def test_rates_by_layer_are_stock_s_and_other_parts_are_trained_like_heads(decay_type):
    student = stock_config('retinanet')
    student.backbone = dict(type='ConvNeXt')
    student.neck.in_channels = [8] * 4
    distiller = MODELS.build(dict(type='SSSDDistiller', student=student))
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
    config = dict(
        wrapper,
        constructor='LearningRateDecayOptimizerConstructor',
        paramwise_cfg=SETTINGS[decay_type],
    )
    stock = StockConstructor(wrapper, config['paramwise_cfg'])(distiller.student)
    expected = parameter_settings(stock, distiller.student)
    assert len({x['lr'] for x in expected.values()}) > 3
    alone = build_optim_wrapper(distiller.student, config)  # not in a distiller
    assert parameter_settings(alone, distiller.student) == expected

    ours = parameter_settings(build_optim_wrapper(distiller, config), distiller)
    for name, parameter in distiller.named_parameters():
        settings = ours.pop(name)
        if name.startswith('student.'):
            assert settings == expected.pop(name.removeprefix('student.')), name
        else:
            decay = 0.0 if parameter.ndim == 1 else 0.05
            assert (settings['lr'], settings['weight_decay']) == (1e-3, decay), name
    assert not ours
    assert not expected


@pytest.mark.parametrize('path', CONFIGS)
def test_mmdet_s_own_settings_are_stock_s(path, monkeypatch):
    for layer in (torch.nn.Conv2d, torch.nn.Linear):  # the weights' values do not matter here
        monkeypatch.setattr(layer, 'reset_parameters', lambda self: None)
    config = Config.fromstring(f'_base_ = "mmdet::{path}"', '.py')
    config.model.backbone.init_cfg = None
    model = dict(type='SSSDDistiller', student=config.model)
    with shallow_resnets():
        distiller = MODELS.build(dict(model, data_preprocessor=config.get('data_preprocessor')))
    stock = build_optim_wrapper(distiller.student, config.optim_wrapper)
    expected = parameter_settings(stock, distiller.student)
    ours = parameter_settings(build_optim_wrapper(distiller, config.optim_wrapper), distiller)
    assert {k: v for k, v in ours.items() if k.startswith('student.')} == {
        f'student.{name}': settings for name, settings in expected.items()
    }
    assert len({(x['lr'], x['weight_decay']) for x in expected.values()}) == CONFIGS[path]
