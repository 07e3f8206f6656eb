"""The checks of `detectors`, on mmdet's own configs: small ones of every kind of detector."""

import re

import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmdet_sssd import ConfigError
from mmdet_sssd.commands import sweep
from mmdet_sssd.models import SSSDDistiller

from .. import toy_detector

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
    result = sweep.check_config(sweep.STOCK_CONFIGS / config)
    assert result.stock_trains, result
    assert (result.distilled, result.levels) == ('ok', CONFIGS[config])


@pytest.fixture
def toy_config(tmp_path):
    path = tmp_path / 'toy.py'
    Config(
        dict(
            model=dict(
                type='ToyDetector',
                data_preprocessor=dict(type='DetDataPreprocessor'),
            )
        )
    ).dump(path)
    return path


@pytest.mark.parametrize(
    ('broken', 'expected'),
    [
        ('loss', 'loss_cls differs'),
        ('student', 'parameters of the student lack a gradient, such as neck.'),
        ('teacher', 'parameters of the teachers lack a gradient, such as teacher.neck.'),
        ('adapter', 'parameters of the terms lack a gradient, such as distill.adapter.convs.'),
    ],
)
def test_what_differs_is_named(toy_config, broken, expected, monkeypatch):
    original = SSSDDistiller.loss

    def loss(self, batch_inputs, batch_data_samples):
        if broken == 'student':
            self.student.neck.requires_grad_(False)
        losses = original(self, batch_inputs, batch_data_samples)
        if broken == 'loss':
            losses['loss_cls'] = losses['loss_cls'] + 1
        if broken == 'teacher':
            losses.pop('teacher.loss_cls')
        if broken == 'adapter':
            losses.pop('loss_distill')
        return losses

    monkeypatch.setattr(SSSDDistiller, 'loss', loss)
    assert expected in sweep.check_config(toy_config).distilled


def test_a_detector_that_does_not_tell_its_classes_is_named(toy_config, monkeypatch):
    monkeypatch.delattr(toy_detector.ToyHead, 'num_classes')
    result = sweep.check_config(toy_config)
    assert result.stock_trains
    assert 'model.teacher.num_classes is not given' in result.distilled


def test_a_check_that_crashes_or_takes_too_long_is_reported(toy_config, monkeypatch):
    def crash(config):
        raise MemoryError

    monkeypatch.setattr(sweep, 'check_config', crash)
    assert 'crashed' in sweep.check_apart([toy_config], 64, 60).stock
    monkeypatch.setattr(sweep, 'check_config', lambda _: torch.multiprocessing.Event().wait())
    assert sweep.check_apart([toy_config], 64, 0.5).stock == 'took more than 0 s'


def test_one_list_of_configs_for_each_folder_of_mmdet_s():
    found = sweep.find_configs([])
    folders = [configs[0].parent.name for configs in found]
    assert len(folders) == len(set(folders)) > 100
    assert {'retinanet', 'cornernet', 'yolo', 'ssd', 'dino', 'mask2former'} <= set(folders)
    ((first, *_),) = sweep.find_configs(['retinanet'])
    assert first.name == 'retinanet_r18_fpn_1x_coco.py'
    with pytest.raises(ConfigError, match='retinet not found; accepted: a config'):
        sweep.find_configs(['retinet'])


def test_each_config_of_a_folder_s_path(toy_config):
    other = toy_config.with_name('other.py')
    other.write_text(toy_config.read_text())
    assert sweep.find_configs([str(toy_config.parent)]) == [[other], [toy_config]]


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(distill_loss=dict(type='NormedMSELoss')), 'ok'),
        (dict(teacher_loss_weight=0), 'ok'),  # nothing of the teacher is trained
    ],
)
@pytest.mark.parametrize('beside', [False, True])
def test_a_config_s_own_distiller_is_trained(toy_config, settings, expected, beside):
    cfg = Config.fromfile(toy_config)
    cfg.model = dict(type='SSSDDistiller', student=cfg.model, **settings)
    if beside:
        cfg.data_preprocessor = cfg.model.student.pop('data_preprocessor')
    cfg.dump(toy_config)
    result = sweep.check_config(toy_config)
    assert result.stock_trains
    assert re.fullmatch(expected, result.distilled)


def test_the_table_counts():
    results = [
        sweep.SweepResult('a.py', 'ok', 'ok', levels=(256, 128), image_size=128),
        sweep.SweepResult('b.py', 'ok', 'loss_cls differs'),
        sweep.SweepResult('c.py', 'ImportError: lap'),
        sweep.SweepResult('d.py', 'a tracker', in_scope=False),
    ]
    table = sweep.as_table(results)
    assert table.startswith('4 configs, 3 in scope: stock trains 2, distilled 1 of them.')
    assert '| a.py | 128 | 256, 128 | ok | ok |' in table
    assert '| d.py |  |  | out of scope: a tracker |  |' in table


def test_models_are_made_fit_for_random_weights_on_a_cpu():
    config = Config(
        dict(
            model=dict(
                type='X',
                backbone=dict(
                    norm_cfg=dict(type='SyncBN'),
                    norm_eval=True,
                    init_cfg=dict(type='Pretrained', checkpoint='a.pth'),
                ),
                bbox_head=[dict(init_cfg=dict(type='Normal'))],
            ),
            data_preprocessor=dict(type='P'),
        )
    )
    distiller = sweep.cpu_distiller(config)
    assert isinstance(distiller, ConfigDict)
    assert distiller.type == 'SSSDDistiller'
    model = distiller.student
    assert model.backbone == dict(norm_cfg=dict(type='BN'), norm_eval=False, init_cfg=None)
    assert model.bbox_head == [dict(init_cfg=dict(type='Normal'))]
    assert model.data_preprocessor == dict(type='P')
    with pytest.raises(ConfigError, match='the config has no model'):
        sweep.cpu_distiller(Config(dict()))
