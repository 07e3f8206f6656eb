"""Stock detectors of mmdet's, shrunk until a step takes a fraction of a second."""

import copy
import functools
from contextlib import contextmanager

import pytest
from mmdet.models import ResNet, ResNeXt
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict

NUM_CLASSES = 3
CONFIGS = {
    'retinanet': 'retinanet/retinanet_r18_fpn_1x_coco.py',
    'atss': 'atss/atss_r50_fpn_1x_coco.py',
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'faster_rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mask_rcnn': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'dynamic_rcnn': 'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py',
    'cascade_rcnn': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'rtmdet': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'deformable_detr': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'dino': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'yolox': 'yolox/yolox_tiny_8xb8-300e_coco.py',
}


def stock_config(name: str) -> ConfigDict:
    """Read a stock model config and make it small: narrow ResNet-18, 3 classes, no weights."""
    model = copy.deepcopy(_read(name))
    model.backbone.init_cfg = None
    model.data_preprocessor.pop('batch_augments', None)  # ask a runner for its iteration
    if model.backbone.type == 'ResNet':
        model.backbone.update(depth=18, base_channels=16, frozen_stages=-1, style='pytorch')
        model.backbone.norm_cfg.requires_grad = True
        model.backbone.norm_eval = False
        in_channels = [16 * 2**stage for stage in model.backbone.out_indices]
        # DINO's decoder encodes boxes for a width of 256, whatever its config says
        model.neck.update(in_channels=in_channels, out_channels=256 if model.type == 'DINO' else 32)
    for head in _heads(model):
        if 'num_classes' in head:
            head.num_classes = NUM_CLASSES
        for key in ('in_channels', 'feat_channels', 'conv_out_channels'):
            if key in head and model.backbone.type == 'ResNet':
                head[key] = 32
        if 'fc_out_channels' in head:
            head.fc_out_channels = 32
        if 'stacked_convs' in head:
            head.stacked_convs = 2
    if 'roi_head' in model:
        for extractor in ('bbox_roi_extractor', 'mask_roi_extractor'):
            if extractor in model.roi_head:
                model.roi_head[extractor].out_channels = 32
        for stage in _listed(model.train_cfg.rcnn):
            stage.sampler.num = 64
    if 'dn_cfg' in model:
        model.dn_cfg.group_cfg.num_dn_queries = 10
    if 'encoder' in model:
        _shrink_transformer(model)
    return model


@functools.cache
def _read(name):
    return Config.fromstring(f'_base_ = "mmdet::{CONFIGS[name]}"', '.py').model


def _shrink_transformer(model):
    width = model.neck.out_channels
    model.num_queries = 40
    model.positional_encoding.num_feats = width // 2
    model.bbox_head.embed_dims = width
    for stack in (model.encoder, model.decoder):
        stack.num_layers = 1
        for part in stack.layer_cfg.values():
            part.embed_dims = width
        stack.layer_cfg.ffn_cfg.feedforward_channels = 64


@contextmanager
def shallow_resnets():
    """ResNets that are built have one block in each stage, whatever their depth."""
    with pytest.MonkeyPatch.context() as patch:
        for backbone in (ResNet, ResNeXt):
            settings = {k: (block, (1,) * 4) for k, (block, _) in backbone.arch_settings.items()}
            patch.setattr(backbone, 'arch_settings', settings)
        yield


def demo_batch(model, num_items=(3, 1), with_mask=False):
    """Make a batch of two images of different sizes, as the model's data preprocessor gives it."""
    data = demo_mm_inputs(
        2,
        [[3, 78, 96], [3, 96, 68]],  # none of the boxes is thin
        num_items=list(num_items),
        num_classes=NUM_CLASSES,
        with_mask=with_mask,
    )
    return model.data_preprocessor(data, True)


def _heads(config):
    for key in ('bbox_head', 'rpn_head', 'roi_head', 'mask_head'):
        for head in _listed(config.get(key)):
            yield head
            if key == 'roi_head':
                yield from _heads(head)


def _listed(head):
    if head is None:
        return []
    return head if isinstance(head, list) else [head]
