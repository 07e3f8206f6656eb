import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import HOOKS, MODELS
from mmdet.utils import register_all_modules
from mmengine.analysis.print_helper import _format_size
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer

from mmdet_sssd import ConfigError
from mmdet_sssd.export import export_student, stock_config
from tools import make_shapes

from .stock_detectors import NUM_CLASSES
from .stock_detectors import stock_config as detector_config

ROOT = Path(__file__).parents[1]
DETECTORS = ('retinanet', 'faster_rcnn', 'mask_rcnn', 'deformable_detr')
NUM_IMAGES = 2
CONFIG = """
_base_ = ['mmdet::_base_/default_runtime.py', '{root}/configs/_base_/sssd.py']
default_hooks = _base_.sssd_hooks
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', metainfo=dict(classes={classes}), data_root='{data}',
                 ann_file='annotations/val.json', data_prefix=dict(img='val'), test_mode=True,
                 pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file='{data}/annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
load_from = 'somewhere.pth'
resume = True
work_dir = 'work_dirs/somewhere'
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes')
    make_shapes.write_split(out, 'val', NUM_IMAGES, 96, np.random.default_rng(0))
    return out


def training_config(name, data) -> Config:
    """The config of a small detector's distillation, whose detections are many."""
    classes = make_shapes.CLASSES[:NUM_CLASSES]
    cfg = Config.fromstring(CONFIG.format(root=ROOT, data=data, classes=classes), '.py')
    student = detector_config(name)
    for test_cfg in (student.test_cfg, student.test_cfg.get('rcnn', {})):
        if 'score_thr' in test_cfg:
            test_cfg.score_thr = 0.0
    cfg.model = dict(type='SSSDDistiller', student=student)
    return cfg


def save_checkpoint(path, cfg, **changes) -> Path:
    """A checkpoint with what mmengine's have in the middle of a run."""
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    meta = dict(
        cfg=cfg.pretty_text,
        epoch=1,
        iter=np.int64(7),
        dataset_meta=dict(classes=tuple('abc'), palette=np.arange(9).reshape(3, 3)),
    )
    checkpoint = dict(
        meta=meta,
        state_dict=model.state_dict(),
        message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])}),
        optimizer=dict(state={0: dict(momentum_buffer=torch.ones(3))}),
        random_state=torch.get_rng_state(),
    )
    torch.save({**checkpoint, **changes}, path)
    return path


@pytest.fixture(scope='module')
def in_stock_mmdet(data, tmp_path_factory):
    """What stock mmdet makes of each exported detector, and what the distiller predicts."""
    register_all_modules()
    folder = tmp_path_factory.mktemp('export')
    images = sorted(str(path) for path in (data / 'val').iterdir())
    expected, pairs = {}, []
    for name in DETECTORS:
        cfg = training_config(name, data)
        checkpoint = save_checkpoint(folder / f'{name}.pth', cfg)
        distiller = DetInferencer(cfg, str(checkpoint), device='cpu', show_progress=False)
        assert type(distiller.model).__name__ == 'SSSDDistiller'
        expected[name] = distiller(images, return_datasamples=True)['predictions']
        weights, config = export_student(checkpoint, folder / 'out')
        pairs += [config, weights]
    subprocess.run(
        [sys.executable, ROOT / 'tests/stock_process.py', data / 'val', folder / 'out.pkl', *pairs],
        env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
        cwd=folder,
        check=True,
    )
    return pickle.loads((folder / 'out.pkl').read_bytes()), expected


def assert_equal_instances(ours, expected, fields):
    for field in fields:
        x, y = (torch.as_tensor(instances[field]) for instances in (ours, expected))
        assert torch.equal(x, y), field


@pytest.mark.parametrize('name', DETECTORS)
def test_stock_mmdet_without_this_package_predicts_what_the_distiller_does(in_stock_mmdet, name):
    results, expected = (x[name] for x in in_stock_mmdet)
    instances = [sample.pred_instances for sample in expected]
    assert sum(map(len, instances)) >= 20
    fields = list(instances[0].keys())
    assert ('masks' in fields) == (name == 'mask_rcnn')
    for key in ('predictions', 'predictions_of_the_checkpoint_alone'):
        for ours, theirs in zip(results[key], instances, strict=True):
            assert_equal_instances(ours.pred_instances, theirs, fields)
    for ours, theirs in zip(results['tested'], instances, strict=True):
        assert_equal_instances(ours['pred_instances'], theirs, ('bboxes', 'scores', 'labels'))
