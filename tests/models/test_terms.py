"""Terms beside pretrained teachers: features and logits, against restatements by hand."""

import pytest
import torch
from torch import nn

from mmdet_sssd.models import AdaptiveDistillLoss, DetectorOutputs
from mmdet_sssd.models.terms import match_levels

from ..distillers import (
    ADL,
    MSE,
    SSIM,
    assert_equal,
    backward,
    losses_of,
    pretrained,
    without_gradient,
)
from ..distillers import build as build_distiller
from ..stock_detectors import demo_batch, stock_config

STRIDES = (8, 16, 32, 64, 128)


def wider(name: str):
    """The same detector with 48 channels in its levels, where the small one has 32."""
    config = stock_config(name)
    config.neck.out_channels = config.bbox_head.in_channels = 48
    return config


def build(name, terms, teacher=None, **settings):
    teachers = dict(large=pretrained(teacher or wider(name)))
    model = build_distiller(
        name, **{'type': 'Distiller', **settings}, teachers=teachers, terms=terms
    )
    for parameter in model.teachers['large'].detector.bbox_head.parameters():
        nn.init.normal_(parameter, std=0.05)  # logits that differ
    return model


def floored(neck, inputs, levels):
    """Cut levels to whole strides, as necks with pooling, and some transformers, have them."""
    return tuple(
        x[..., : max(96 // s, 1), : max(80 // s, 1)] for x, s in zip(levels, STRIDES, strict=True)
    )


@pytest.mark.parametrize('rounds', ['up', 'down'])
def test_a_logit_term_counts_the_anchors_inside_the_images(rounds):
    """Pixel by pixel; FCOS has one anchor for each, and its assigner ignores nothing."""
    theta = dict(theta=0.5)
    model = build('fcos', dict(adl={**ADL, 'distill_coef': 0.5, 'distill_loss': theta}))
    data = demo_batch(model)
    data['inputs'] = data['inputs'][..., :80]  # of 96
    if rounds == 'down':
        for detector in (model.student, model.teachers['large'].detector):
            detector.neck.register_forward_hook(floored)
    for sample, shape in zip(data['data_samples'], [(78, 80), (96, 64)], strict=True):
        sample.set_metainfo(dict(img_shape=shape))  # the second ends where a pixel of P6 begins
    mine, theirs = (
        x.bbox_head(x.extract_feat(data['inputs']))[0]
        for x in (model.student, model.teachers['large'].detector)
    )
    z, q = [], []
    for b, sample in enumerate(data['data_samples']):
        height, width = sample.img_shape
        for stride, x, t in zip(STRIDES, mine, theirs, strict=True):
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    if i * stride < height and j * stride < width:
                        z.append(x[b, :, i, j])
                        q.append(t[b, :, i, j])
    expected = 0.5 * AdaptiveDistillLoss(**theta)(torch.stack(z), torch.stack(q))
    torch.testing.assert_close(losses_of(model, data)['loss_adl'], expected)


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'atss'])
def test_a_term_on_logits_leaves_the_student_s_step_stock(name):
    model = build(name, dict(adl=ADL, ssim=SSIM))
    calls = []
    for part in ('backbone', 'neck', 'bbox_head'):
        module = model.student.get_submodule(part)
        module.register_forward_hook(lambda *_, part=part: calls.append(part))
    losses, passes = losses_of(model), [*calls]
    assert passes == ['backbone', 'neck', 'bbox_head']
    stock = losses_of(model.student)
    assert_equal({key: losses[key] for key in stock}, stock)
    backward(model, losses)
    assert without_gradient(model) == []


def test_a_term_beside_the_implicit_teacher_leaves_it_as_it_was():
    plain = build_distiller('retinanet')
    model = build('retinanet', dict(adl={**ADL, 'teacher': 'large'}), type='SSSDDistiller')
    model.load_state_dict(plain.state_dict(), strict=True)
    alone, both = losses_of(plain), losses_of(model)
    assert both.keys() - alone.keys() == {'loss_adl'}
    assert_equal({key: both[key] for key in alone}, alone)


def test_detached_only_the_adapter_learns_from_a_term():
    model = build('retinanet', dict(ssim=SSIM))
    model.terms['ssim'].detach_student = True
    losses_of(model)['loss_ssim'].backward()
    assert all(p.grad is None for p in model.student.parameters())
    assert all(p.grad.any() for p in model.terms['ssim'].parameters())


def test_three_features_of_an_image_meet_the_teacher_s_one():
    """As TridentNet's in training: those of all images, three times over."""
    term = build('retinanet', dict(mse=MSE), stock_config('retinanet')).terms['mse']
    teacher = [torch.randn(2, 32, size, size) for size in (8, 4, 2, 1, 1)]
    student = [torch.randn(6, 32, size, size) for size in (8, 4, 2, 1, 1)]
    loss = term(DetectorOutputs(student), DetectorOutputs(teacher), None, None)['loss']
    squares = [(x - torch.cat([t, t, t])).square() for x, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(loss, torch.cat([x.flatten() for x in squares]).mean())


@pytest.mark.parametrize(
    ('student', 'teacher', 'levels', 'pairs'),
    [
        ((40, 20, 10), (80, 40, 20, 10, 5), None, {0: 1, 1: 2, 2: 3}),
        ((40, 40), (40, 40), None, {0: 0, 1: 1}),  # stacks of an hourglass
        ((80, 40), (40, 20), None, {0: 0, 1: 0}),
        ((40, 20, 10, 5, 3), (20,), None, {0: 0, 1: 0, 2: 0}),  # one map of stride 16
        ((40, 20, 10, 5, 3), (23, 23), None, {0: 1, 1: 1, 2: 1}),  # of stride 14, the deeper one
        ((40, 20, 10), (20, 10), [None, 0, 0], {1: 0, 2: 0}),
    ],
)
def test_a_level_meets_the_teacher_s_nearest_or_chosen_one(student, teacher, levels, pairs):
    feats = ([torch.zeros(1, 1, side, side) for side in sides] for sides in (student, teacher))
    assert match_levels(*feats, levels) == [*pairs.items()]
