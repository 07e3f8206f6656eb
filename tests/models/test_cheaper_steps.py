"""Means to pay less for a step, each against what it leaves out."""

import copy
from collections import Counter

import pytest
import torch
from mmdet.registry import MODELS

from mmdet_sssd import ConfigError
from mmdet_sssd.models import FeatureAdapter, replay
from mmdet_sssd.models.replay import fresh_samples, given_feats

from ..stock_detectors import demo_batch, stock_config


def build(name, **settings):
    torch.manual_seed(0)
    model = MODELS.build(dict(type='SSSDDistiller', student=stock_config(name), **settings))
    model.init_weights()
    return model.train()


def losses_of(model, data):
    torch.manual_seed(1)
    losses = model(**copy.deepcopy(data), mode='loss')
    return {k: torch.stack([*v]) if isinstance(v, list) else v for k, v in losses.items()}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'faster_rcnn', 'yolox', 'deformable_detr'])
def test_levels_that_are_not_taught_pass_through(name):
    """The teacher's losses are those on its own levels and the student's others, all run anew."""
    model = build(name, start_level=1)
    data = demo_batch(model)
    losses = losses_of(model, data)
    feats = model.extract_feat(data['inputs'])
    neck = model.teachers['teacher'].neck
    made = (feats[0], *neck(feats[1:], data['inputs'], data['data_samples']))
    torch.manual_seed(1)
    model.student.loss(data['inputs'], fresh_samples(data['data_samples']))  # draws as much
    with given_feats(model.student, made):
        expected = model.student.loss(data['inputs'], fresh_samples(data['data_samples']))
    for key, value in expected.items():
        value = torch.stack([*value]) if isinstance(value, list) else value
        torch.testing.assert_close(losses[f'teacher.{key}'], value, msg=key)
    compared = {key for key in losses if key.startswith('distill_distance')}
    assert compared == {f'distill_distance.{p}' for p in range(1, len(feats))}


@pytest.mark.parametrize(
    ('name', 'head'), [('retinanet', 'bbox_head'), ('faster_rcnn', 'rpn_head')]
)
def test_a_dense_head_runs_on_the_taught_levels_alone_in_the_teacher_s_pass(name, head):
    model = build(name, start_level=2)
    module = getattr(model.student, head)
    seen = Counter()
    first_conv = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
    first_conv.register_forward_hook(lambda _, args, out: seen.update([tuple(args[0].shape[2:])]))
    data = demo_batch(model)
    sizes = [tuple(x.shape[2:]) for x in model.extract_feat(data['inputs'])]
    losses_of(model, data)
    assert [seen[size] for size in sizes] == [1, 1, 2, 2, 2]
    assert 'forward_single' not in vars(module)


def test_skipped_levels_get_no_gradient_from_the_teacher_s_loss():
    model = build('retinanet', start_level=4)
    data = demo_batch(model)
    taps = []
    model.student.neck.register_forward_hook(lambda _, args, out: taps.extend(out))
    losses = losses_of(model, data)
    teacher = sum(x.sum() for key, x in losses.items() if key.startswith('teacher.loss'))
    grads = torch.autograd.grad(teacher, taps, allow_unused=True)
    assert [x is None or not x.any() for x in grads] == [True] * 3 + [False] * 2  # P7 comes of P6


@pytest.mark.parametrize('level', [5, -1, 1.0, [1]])
def test_a_start_level_out_of_range_is_refused(level):
    with pytest.raises(ConfigError, match=r'^model\.start_level is .*; accepted: the index of a'):
        build('retinanet', start_level=level)


def count_targets(model):
    """Count how often a head's targets are made, and an assigner assigns."""
    counts = Counter()
    for path, module in model.student.named_modules():
        for owner, name in (
            (module, '_get_targets_single'),
            (vars(module).get('assigner'), 'assign'),
        ):
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
def test_what_does_not_depend_on_predictions_is_computed_once(name, made_once, monkeypatch):
    plain, model = build(name), build(name)
    data, counts = demo_batch(plain), count_targets(model)
    found = losses_of(model, data)
    assert {key for key, count in counts.items() if count == len(data['data_samples'])} == made_once
    monkeypatch.setattr(replay._Call, 'repeats', lambda *_: False)
    expected = losses_of(plain, data)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


def test_targets_that_a_head_changed_afterwards_are_made_again():
    model = build('retinanet')
    head, data = model.student.bbox_head, demo_batch(model)
    counts, loss = count_targets(model), head.loss_by_feat_single

    def changing(cls_score, bbox_pred, anchors, labels, *args, **kwargs):
        labels.add_(0)
        return loss(cls_score, bbox_pred, anchors, labels, *args, **kwargs)

    head.loss_by_feat_single = changing
    losses_of(model, data)
    assert counts['bbox_head._get_targets_single'] == 4


def test_a_narrower_teacher_and_adapter_have_the_layers_that_they_are_given():
    adapter = dict(num_convs=2, kernel_size=1)
    model = build('retinanet', teacher=dict(refine_convs=1), adapter=adapter)
    convs = [m for m in model.terms['distill'].adapter.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.kernel_size for m in convs] == [(1, 1)] * 2
    mapper = model.teachers['teacher'].neck.knowledge_mapper
    assert [m.kernel_size for m in mapper.refine if isinstance(m, torch.nn.Conv2d)] == [(3, 3)]
    total, _ = model.parse_losses(losses_of(model, demo_batch(model)))
    assert gradients(model, total).keys() == dict(model.named_parameters()).keys()
    with pytest.raises(ConfigError, match=r'^model\.adapter\.kernel_size is 2; accepted: an odd'):
        build('retinanet', adapter=dict(kernel_size=2))
    with pytest.raises(ConfigError, match=r'^model\.teacher\.refine_convs is 0; accepted: 1'):
        build('retinanet', teacher=dict(refine_convs=0))


def test_an_idle_teacher_leaves_a_stock_step():
    model = build('retinanet')
    data = demo_batch(model)
    stock = copy.deepcopy(model.student)
    model.teachers['teacher'].active = False
    expected = losses_of(stock, data)
    losses = losses_of(model, data)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[key], x) for key, x in expected.items())


def test_economy_is_the_cheapest_settings_unless_others_are_given():
    short = build('retinanet', economy=True)
    adapter, teacher = dict(num_convs=1, kernel_size=1), dict(refine_convs=1)
    long = build('retinanet', start_level=1, adapter=adapter, teacher=teacher)
    assert str(short) == str(long)
    by_class = build('retinanet', economy=True, adapter=dict(type=FeatureAdapter))
    assert str(by_class) == str(short)
    data = demo_batch(long)
    expected = losses_of(long, data)
    for key, value in losses_of(short, data).items():
        assert torch.equal(value, expected[key]), key
    given = build('retinanet', economy=True, start_level=0, teacher=dict(refine_convs=2))
    assert given.teachers['teacher'].start_level == 0
    assert str(given.teachers['teacher'].neck) != str(short.teachers['teacher'].neck)
    channels = dict(type='ChannelAdapter')
    assert build('retinanet', economy=True, adapter=channels).terms['distill'].adapter.levels
