"""Means to pay less for a step, each against what it leaves out."""

import copy
from collections import Counter

import pytest
import torch
from mmengine.config import Config

from mmdet_sssd.models import DetectorOutputs, FeatureAdapter

from ..distillers import assert_equal, build, losses_of
from ..stock_detectors import demo_batch, stock_config


def convs(module):
    return [x for x in module.modules() if isinstance(x, torch.nn.Conv2d)]


@pytest.mark.parametrize(
    ('name', 'start_level'),
    [
        *((name, 0) for name in ('retinanet', 'fcos', 'faster_rcnn')),
        *((name, 1) for name in ('retinanet', 'faster_rcnn', 'yolox', 'deformable_detr')),
    ],
)
def test_teacher_s_losses_are_those_of_a_detector_with_its_features(name, start_level):
    """All levels are run anew here, those that are not taught too."""
    model = build(name, start_level=start_level)
    data = demo_batch(model)
    losses, feats = losses_of(model, data), model.extract_feat(data['inputs'])
    neck = model.teachers['teacher'].neck
    made = neck(feats[start_level:], data['inputs'], data['data_samples'])
    alone = copy.deepcopy(model.student)
    losses_of(alone, data)  # draws as many samples as the student's pass
    alone.extract_feat = lambda inputs: (*(x.detach() for x in (*feats[:start_level], *made)),)
    expected = alone(**copy.deepcopy(data), mode='loss')
    found = {key: losses[f'teacher.{key}'] for key in expected}
    torch.testing.assert_close(found, expected)
    compared = {key for key in losses if key.startswith('distill_distance')}
    assert compared == {f'distill_distance.{p}' for p in range(start_level, len(feats))}


@pytest.mark.parametrize(
    ('name', 'head'), [('retinanet', 'bbox_head'), ('faster_rcnn', 'rpn_head')]
)
def test_a_dense_head_runs_again_on_the_taught_levels_alone(name, head):
    model, seen = build(name, start_level=2), Counter()
    conv = convs(getattr(model.student, head))[0]
    conv.register_forward_hook(lambda _, args, out: seen.update([tuple(args[0].shape[2:])]))
    data = demo_batch(model)
    sizes = [tuple(x.shape[2:]) for x in model.extract_feat(data['inputs'])]
    losses_of(model, data)
    assert [seen[size] for size in sizes] == [1, 1, 2, 2, 2]


def test_skipped_levels_get_no_gradient_from_the_teacher_s_loss():
    model, taps = build('retinanet', start_level=4), []
    model.student.neck.register_forward_hook(lambda _, args, out: taps.extend(out))
    losses = losses_of(model)
    teacher = sum(sum(x) for key, x in losses.items() if key.startswith('teacher.loss'))
    grads = torch.autograd.grad(teacher, taps, allow_unused=True)
    assert [x is None or not x.any() for x in grads] == [True] * 3 + [False] * 2  # P7 comes of P6


def count_calls(model):
    """Count how often a head makes targets of an image, and an assigner assigns."""
    counts = Counter()
    for path, module in model.student.named_modules():
        for owner in (module, *(vars(module).get(x) for x in ('assigner', 'bbox_assigner'))):
            for name in ('_get_targets_single', 'assign'):
                if hasattr(owner, name):
                    function = getattr(owner, name)

                    def counted(*args, key=f'{path}.{name}', function=function, **kwargs):
                        counts[key] += 1
                        return function(*args, **kwargs)

                    setattr(owner, name, counted)
    return counts


@pytest.mark.parametrize(
    ('name', 'made_once'),
    [
        ('retinanet', {'bbox_head._get_targets_single', 'bbox_head.assign'}),
        ('fcos', {'bbox_head._get_targets_single'}),
        ('atss', {'bbox_head._get_targets_single', 'bbox_head.assign'}),
        ('faster_rcnn', set()),  # each pass copies the boxes, and draws samples
        ('yolox', set()),  # assigns by its predictions
    ],
)
def test_what_does_not_depend_on_predictions_is_computed_once(name, made_once):
    model = build(name)
    data, counts = demo_batch(model), count_calls(model)
    losses_of(model, data)
    assert {key for key, count in counts.items() if count == len(data['data_samples'])} == made_once


def test_targets_that_a_head_changed_afterwards_are_made_again():
    model = build('retinanet')
    head, counts = model.student.bbox_head, count_calls(model)
    loss = head.loss_by_feat_single

    def changing(cls_score, bbox_pred, anchors, labels, *args, **kwargs):
        labels.add_(0)
        return loss(cls_score, bbox_pred, anchors, labels, *args, **kwargs)

    head.loss_by_feat_single = changing
    losses_of(model)
    assert counts['bbox_head._get_targets_single'] == 4


def test_levels_have_one_type_in_mixed_precision(monkeypatch):
    """RoI extractors read them as the first's; on GPUs norms give float32, convolutions float16."""
    model = build(stock_config('faster_rcnn'), economy=True)
    norm = torch.nn.functional.group_norm
    monkeypatch.setattr('torch.nn.functional.group_norm', lambda *x, **k: norm(*x, **k).float())
    data = demo_batch(model)
    with torch.autocast('cpu', torch.bfloat16):
        mine = DetectorOutputs(model.student.extract_feat(data['inputs']))
        teacher = model.teachers['teacher']
        feats = teacher(model.student, mine, data['inputs'], data['data_samples']).feats
    assert mine.feats[0].dtype == torch.bfloat16
    assert {x.dtype for x in feats} == {torch.float32}


def reusing(name, reuse_assignment=True):
    student = stock_config(name)
    if name == 'rtmdet':
        student.bbox_head.exp_on_reg = True
    return build(student, reuse_assignment=reuse_assignment)


@pytest.mark.parametrize('name', ['yolox', 'rtmdet', 'deformable_detr', 'faster_rcnn'])
def test_the_student_s_assignment_is_not_worked_out_again(name):
    """Of two images. An R-CNN's proposals differ."""
    anew, reused = (reusing(name, x) for x in (False, True))
    expected, counts = count_calls(anew), count_calls(reused)
    for model in (anew, reused):
        losses_of(model)
    assignments = [path for path in expected if path.endswith('.assign')]
    for path in assignments:
        assert counts[path] * (1 if 'roi_head' in path else 2) == expected[path], path
    assert 2 in (counts[path] for path in assignments)


def test_the_same_predictions_learn_in_both_passes(monkeypatch):
    """YOLOX, whose assignment depends on its predictions: as many positives, so one average factor."""
    model, sampled = reusing('yolox'), []
    sampler = type(model.student.bbox_head.sampler)
    sample = sampler.sample

    def record(self, assign_result, *args, **kwargs):
        sampled.append(assign_result.gt_inds)
        return sample(self, assign_result, *args, **kwargs)

    monkeypatch.setattr(sampler, 'sample', record)
    losses_of(model)
    assert len(sampled) == 4
    assert_equal(sampled[:2], sampled[2:])


@pytest.mark.parametrize(
    ('name', 'widths'),
    [
        ('yolox/yolox_nano_8xb8-300e_coco.py', [8, 4, 2]),
        ('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', [2, 4, 8]),
    ],
)
def test_economy_skips_the_first_level_where_that_is_the_finest(name, widths):
    config = Config.fromstring(f'_base_ = "mmdet::{name}"', '.py').model
    config.backbone.init_cfg = None
    model = build(config, economy=True)
    feats = model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert [x.shape[-1] for x in feats] == widths
    assert model.teachers['teacher'].start_level == (widths[0] == 8)


def test_economy_is_the_cheapest_settings_unless_others_are_given():
    short = build('retinanet', economy=True)
    adapter, teacher = dict(num_convs=1, kernel_size=1), dict(refine_convs=1)
    long = build('retinanet', start_level=1, adapter=adapter, teacher=teacher)
    assert [x.kernel_size for x in convs(short.terms['distill'].adapter)] == [(1, 1)]
    assert len(convs(short.teachers['teacher'].neck.knowledge_mapper.refine)) == 1
    assert str(short) == str(long)
    assert str(build('retinanet', economy=True, adapter=dict(type=FeatureAdapter))) == str(short)
    assert_equal(losses_of(short), losses_of(long))
    given = build('retinanet', economy=True, start_level=0, teacher=dict(refine_convs=2))
    assert given.teachers['teacher'].start_level == 0
    assert len(convs(given.teachers['teacher'].neck.knowledge_mapper.refine)) == 2
    channels = dict(type='ChannelAdapter')
    assert build('retinanet', economy=True, adapter=channels).terms['distill'].adapter.levels
