import pytest
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as StockConstructor
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from torch import nn

from ..stock_detectors import stock_config
from .parameter_settings import parameter_settings

SETTINGS = {
    'layer_wise': dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6),
    'stage_wise': dict(decay_rate=0.5, decay_type='stage_wise', num_layers=6),
}


@MODELS.register_module()
class ConvNeXt(nn.Module):
    """Has the class and layer names that mmdet's constructor looks for, and no more than that."""

    def __init__(self):
        super().__init__()
        widths = (8, 8, 16, 32)
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride, 1)
            for c_in, c_out, stride in zip((3, 8, 8, 16), widths, (4, 2, 2, 2), strict=True)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv2d(c, c, 1), nn.GroupNorm(1, c)) for _ in range(n))
            for c, n in zip(widths, (1, 1, 4, 1), strict=True)
        )

    def forward(self, x):
        outs = []
        for downsample, blocks in zip(self.downsample_layers, self.stages, strict=True):
            x = downsample(x)
            for block in blocks:
                x = block(x)
            outs.append(x)
        return outs


def student_config():
    config = stock_config('retinanet')
    config.backbone = dict(type='ConvNeXt')
    config.neck.in_channels = [8, 8, 16, 32]
    return config


def optim_wrapper_config(decay_type):
    return dict(
        type='OptimWrapper',
        constructor='LearningRateDecayOptimizerConstructor',
        paramwise_cfg=SETTINGS[decay_type],
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    )


@pytest.fixture(scope='module')
def distiller():
    return MODELS.build(dict(type='SSSDDistiller', student=student_config()))


@pytest.mark.parametrize('decay_type', SETTINGS)
def test_each_parameter_of_the_student_has_the_stock_settings(distiller, decay_type):
    config = optim_wrapper_config(decay_type)
    stock = StockConstructor(
        dict(type='OptimWrapper', optimizer=config['optimizer']), config['paramwise_cfg']
    )(distiller.student)
    expected = parameter_settings(stock, distiller.student)
    ours = parameter_settings(build_optim_wrapper(distiller, config), distiller)
    assert len({x['lr'] for x in expected.values()}) > 3
    assert {k: v for k, v in ours.items() if k.startswith('student.')} == {
        f'student.{name}': settings for name, settings in expected.items()
    }


def test_rates_fall_from_the_heads_to_the_stem(distiller):
    wrapper = build_optim_wrapper(distiller, optim_wrapper_config('layer_wise'))
    ours = parameter_settings(wrapper, distiller)
    scales = {
        'student.backbone.downsample_layers.0.weight': 0.7**7,
        'student.backbone.stages.0.0.0.weight': 0.7**6,
        'student.backbone.stages.1.0.0.weight': 0.7**5,
        'student.backbone.stages.2.0.0.weight': 0.7**4,
        'student.backbone.stages.2.3.0.weight': 0.7**3,
        'student.backbone.stages.3.0.0.weight': 0.7**1,
        'student.neck.lateral_convs.0.conv.weight': 1,
        'student.bbox_head.retina_cls.weight': 1,
    }
    assert {k: ours[k]['lr'] for k in scales} == pytest.approx(
        {k: 1e-3 * scale for k, scale in scales.items()}
    )


@pytest.mark.parametrize('decay_type', SETTINGS)
def test_teacher_and_adapter_are_trained_like_heads(distiller, decay_type):
    wrapper = build_optim_wrapper(distiller, optim_wrapper_config(decay_type))
    ours = parameter_settings(wrapper, distiller)
    aux = {
        name: (x['lr'], x['weight_decay'])
        for name, x in ours.items()
        if not name.startswith('student.')
    }
    assert {name.partition('.')[0] for name in aux} == {'teachers', 'terms'}
    assert aux == {
        name: (1e-3, 0.0 if parameter.ndim == 1 else 0.05)
        for name, parameter in distiller.named_parameters()
        if not name.startswith('student.')
    }
    assert ours.keys() == dict(distiller.named_parameters()).keys()


def test_other_models_get_the_stock_settings(distiller):
    config = optim_wrapper_config('layer_wise')
    stock = StockConstructor(
        dict(type='OptimWrapper', optimizer=config['optimizer']), config['paramwise_cfg']
    )(distiller.student)
    ours = build_optim_wrapper(distiller.student, config)
    assert parameter_settings(ours, distiller.student) == parameter_settings(
        stock, distiller.student
    )
