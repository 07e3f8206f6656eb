"""mmdet's own optimizer settings, on distillers of the detectors that they were written for."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from ..stock_detectors import shallow_resnets
from .parameter_settings import parameter_settings

CONFIGS = {  # how many different (lr, weight decay) stock mmdet's settings give
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py': 2,
    'detr/detr_r50_8xb2-150e_coco.py': 2,
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': 2,
    'dino/dino-4scale_r50_8xb2-12e_coco.py': 2,
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': 3,
    'pvt/retinanet_pvt-t_fpn_1x_coco.py': 1,
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': 2,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': 3,
    'yolox/yolox_tiny_8xb8-300e_coco.py': 2,
    'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py': 3,
}


@pytest.mark.parametrize('path', CONFIGS)
def test_each_parameter_of_the_student_has_the_stock_settings(path, monkeypatch):
    for layer in (torch.nn.Conv2d, torch.nn.Linear):  # the weights' values do not matter here
        monkeypatch.setattr(layer, 'reset_parameters', lambda self: None)
    config = Config.fromstring(f'_base_ = "mmdet::{path}"', '.py')
    config.model.backbone.init_cfg = None
    with shallow_resnets():
        distiller = MODELS.build(
            dict(
                type='SSSDDistiller',
                student=config.model,
                data_preprocessor=config.get('data_preprocessor'),
            )
        )
    expected = parameter_settings(
        build_optim_wrapper(distiller.student, config.optim_wrapper), distiller.student
    )
    ours = parameter_settings(build_optim_wrapper(distiller, config.optim_wrapper), distiller)
    assert {k: v for k, v in ours.items() if k.startswith('student.')} == {
        f'student.{name}': settings for name, settings in expected.items()
    }
    assert len({(x['lr'], x['weight_decay']) for x in expected.values()}) == CONFIGS[path]
