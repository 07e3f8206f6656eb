"""The preset on stock detectors: the student stays stock, and the teacher's pass leaves no trace."""

import copy

import numpy as np
import pytest
import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.runner import load_state_dict as load_checkpoint_weights
from mmengine.structures import InstanceData
from torch import nn

from mmdet_sssd import ConfigError
from mmdet_sssd.models.distiller import covers_a_pixel
from mmdet_sssd.models.student import count_classes

from ..distillers import assert_equal, backward, build, losses_of, without_gradient
from ..stock_detectors import CONFIGS, NUM_CLASSES, demo_batch, stock_config


def build_stock(config) -> nn.Module:
    model = MODELS.build(stock_config(config) if isinstance(config, str) else config)
    model.init_weights()
    return model.train()


@pytest.mark.parametrize('name', CONFIGS)
def test_student_trains_as_stock_and_all_parts_get_gradients(name):
    """The second step shows whether the teacher's pass left statistics, counts or histories."""
    stock, model = build_stock(name), build(name)
    model.student.load_state_dict(stock.state_dict())
    passes = []
    model.student.backbone.register_forward_hook(lambda *_: passes.append(1))
    for seed in (0, 1):
        data = demo_batch(stock, with_mask=name == 'mask_rcnn')
        expected, random_state = losses_of(stock, data, seed), torch.get_rng_state()
        losses = losses_of(model, data, seed)
        assert_equal({key: losses[key] for key in expected}, expected)
        assert_equal(torch.get_rng_state(), random_state)  # of the samples of the next step
        assert_equal(dict(model.student.named_buffers()), dict(stock.named_buffers()))
    assert len(passes) == 2
    if name == 'dynamic_rcnn':
        assert model.roi_head.iou_history == stock.roi_head.iou_history
        assert model.roi_head.beta_history == stock.roi_head.beta_history

    logged = backward(model, losses)
    of_teacher = {key for key in logged if key.startswith('teacher.')}
    assert of_teacher == {f'teacher.{key}' for key in expected}
    assert 0 < logged['loss_distill'] <= model.terms['distill'].distill_coef
    assert all(x.isfinite() for x in logged.values())
    assert without_gradient(model) == []
    neck, feats = model.teachers['teacher'].neck, model.extract_feat(torch.zeros(2, 3, 64, 64))
    assert neck.num_classes == NUM_CLASSES
    assert neck.in_channels == tuple(x.shape[1] for x in feats)


def test_distillation_loss_is_that_of_the_method():
    model = build('retinanet', distill_coef=7.0, distill_loss=dict(type='NormedMSELoss'))
    data = demo_batch(model)
    feats = model.extract_feat(data['inputs'])
    target = model.teachers['teacher'].neck(feats, data['inputs'], data['data_samples'])

    def normed(x):
        variance = x.var((2, 3), unbiased=False, keepdim=True)
        return (x - x.mean((2, 3), keepdim=True)) / (variance + 1e-5).sqrt()

    pairs = zip(model.terms['distill'].adapter(feats), target, strict=True)
    squares = torch.cat([(normed(x) - normed(t)).square().flatten() for x, t in pairs])
    torch.testing.assert_close(losses_of(model, data)['loss_distill'], 7 * squares.mean())


def test_other_classes_leave_the_layers_that_differ_as_they_were():
    """Fine-tuning, through the loader that load_from and init_cfg use."""
    config = stock_config('retinanet')
    config.bbox_head.num_classes = NUM_CLASSES + 2
    stock, model = MODELS.build(config), build('retinanet')
    before = copy.deepcopy(model.student.state_dict())
    load_checkpoint_weights(model, stock.state_dict())
    for key, value in stock.state_dict().items():
        expected = before[key] if 'retina_cls' in key else value
        assert torch.equal(model.student.state_dict()[key], expected), key


@pytest.mark.parametrize('owner', ['student', 'distiller'])
def test_init_cfg_loads_a_stock_checkpoint(owner, tmp_path):
    stock, path = build_stock('retinanet'), str(tmp_path / 'stock.pth')
    torch.save(dict(meta={}, state_dict=stock.state_dict()), path)
    student, init_cfg = stock_config('retinanet'), dict(type='Pretrained', checkpoint=path)
    if owner == 'student':
        model = build({**student, 'init_cfg': init_cfg})
    else:
        model = build(student, init_cfg=init_cfg)
    assert_equal(dict(model.student.state_dict()), dict(stock.state_dict()))


def test_mixed_and_foreign_state_dicts_are_refused():
    model = build('retinanet')
    mixture = {**model.state_dict(), 'neck.fpn_convs.0.conv.bias': torch.zeros(32)}
    with pytest.raises(ConfigError, match=r'of a distiller \(student\..*detector \(neck\.fpn'):
        load_checkpoint_weights(model, mixture)
    with pytest.raises(ConfigError, match=r'none of the 1 weights .* model\.student, a RetinaNet'):
        load_checkpoint_weights(model, {'conv1.weight': torch.zeros(64, 3, 7, 7)})
    with pytest.raises(ConfigError, match=r'none of the 1 weights .* it has student\.x'):
        load_checkpoint_weights(model, {'student.x': torch.zeros(1)})


def test_attributes_lead_to_the_student():
    model = build('faster_rcnn')
    assert model.roi_head is model.student.roi_head
    assert model.with_rpn
    with pytest.raises(AttributeError, match='no_such_thing'):
        _ = model.no_such_thing


@pytest.mark.parametrize(
    ('name', 'counts'), [*((name, (0, 0)) for name in CONFIGS), ('mask_rcnn', (0, 2))]
)
def test_images_without_objects_train_on(name, counts):
    model = build(name)
    data = demo_batch(model, counts, with_mask=name == 'mask_rcnn')
    assert backward(model, losses_of(model, data))['loss'].isfinite()
    assert not [x for x in without_gradient(model) if not x.startswith('student.')]


BAD_BOXES = [
    [20, 20, 20, 20],  # empty
    [20, 20, 20.5, 60],  # thin
    [60, 60, 20, 20],  # reversed
    [500, 500, 600, 600],  # outside
    [-30, 10, 0.4, 40],  # a sliver at the edge
    [float('nan'), 10, 40, 40],
]


def test_a_box_needs_a_pixel_within_each_edge():
    inside = torch.tensor([[99, 59, 120, 90], [-20, -9, 1, 1]])
    outside = torch.tensor([[99.5, 0, 120, 50], [0, 59.5, 50, 90], [-20, 0, 0.5, 50]])
    assert covers_a_pixel(inside, (60, 100)).all()
    assert not covers_a_pixel(outside, (60, 100)).any()


def test_a_teacher_s_classes_are_not_the_student_s():
    model = build('retinanet')
    model.teachers['teacher'].neck.num_classes = 1000
    assert count_classes(model) == NUM_CLASSES


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'mask_rcnn'])
def test_degenerate_boxes_are_left_out_with_labels_and_masks(name):
    has_masks = name == 'mask_rcnn'
    model = build(name, teacher=dict(use_masks=has_masks))
    data = demo_batch(model, with_mask=has_masks)
    expected = losses_of(model, data)
    bad, count = InstanceData(bboxes=torch.tensor(BAD_BOXES)), len(BAD_BOXES)
    bad.labels = torch.ones(count, dtype=torch.long)
    for sample in data['data_samples']:
        if has_masks:
            size = sample.gt_instances.masks.height, sample.gt_instances.masks.width
            bad.masks = BitmapMasks(np.ones((count, *size), np.uint8), *size)
        sample.gt_instances = InstanceData.cat([bad, sample.gt_instances])
    before = len(data['data_samples'][0].gt_instances)
    torch.manual_seed(1)
    torch.testing.assert_close(model(**data, mode='loss'), expected, rtol=1e-3, atol=1e-4)
    assert model.num_dropped_boxes == 2 * count
    assert len(data['data_samples'][0].gt_instances) == before, "the caller's samples were changed"


def test_a_student_that_needs_a_gpu_has_its_channels_given(monkeypatch):
    def fail(self, batch_inputs):
        raise RuntimeError('carafe_forward_impl: implementation for device cpu not found')

    monkeypatch.setattr(RetinaNet, 'extract_feat', fail)
    message = (
        r'^model\.student \(RetinaNet\) cannot .*cpu not found\).* give SSSDDistiller the chann'
    )
    with pytest.raises(ConfigError, match=message):
        build('retinanet')
    given = dict(in_channels=[32] * 4)
    model = build('retinanet', teacher=given, adapter=given, economy=True)
    assert model.teachers['teacher'].neck.in_channels == (32,) * 4
    assert model.teachers['teacher'].start_level == 1


def test_an_rpn_takes_all_classes_for_one():
    student = stock_config('faster_rcnn')
    student.type = 'RPN'
    student.pop('roi_head')
    model = build(student)
    neck, data = model.teachers['teacher'].neck, demo_batch(model)
    assert neck.num_classes == 1
    inputs, samples = data['inputs'], data['data_samples']
    feats = model.extract_feat(inputs)
    expected = neck(feats, inputs, samples)
    for sample in samples:
        sample.gt_instances.labels[:] = 0
    assert_equal(neck(feats, inputs, samples), expected)


def test_a_head_that_proposes_boxes_has_no_classes_to_count():
    """As guided anchoring's, and one-stage heads as RPN heads."""
    student = stock_config('faster_rcnn')
    head = {**stock_config('fcos').bbox_head, 'num_classes': 1}
    student.rpn_head = {**head, 'in_channels': student.rpn_head.in_channels}
    assert count_classes(build(student)) == NUM_CLASSES


def test_bfloat16_autocast_keeps_the_losses_close():
    model = build('retinanet')
    expected = losses_of(model)
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(model)
    assert losses['loss_distill'].dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.02, check_dtype=False)
    backward(model, losses)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
