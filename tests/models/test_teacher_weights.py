"""What the teacher's loss weighs, by loss and by what it trains."""

import copy

import pytest
import torch
from mmdet.registry import MODELS

from mmdet_sssd import ConfigError

from ..stock_detectors import demo_batch, stock_config

CLASSIFIERS = {  # the parameters that a classification loss alone reaches in stock's own pass
    'retinanet': {'cls_convs', 'retina_cls'},
    'fcos': {'cls_convs', 'conv_cls'},
    'faster_rcnn': {'rpn_cls', 'fc_cls'},
    'yolox': {'multi_level_cls_convs', 'multi_level_conv_cls'},
    'rtmdet': {'cls_convs', 'rtm_cls'},
    'deformable_detr': {'cls_branches'},
}


def build(name, **settings):
    torch.manual_seed(0)
    model = MODELS.build(dict(type='SSSDDistiller', student=stock_config(name), **settings))
    model.init_weights()
    return model.train()


def teacher_losses(model):
    torch.manual_seed(1)
    losses = model(**copy.deepcopy(demo_batch(model)), mode='loss')
    return {
        key: sum(value) if isinstance(value, list) else value
        for key, value in losses.items()
        if key.startswith('teacher.') and 'loss' in key
    }


def gradients(model, loss):
    grads = torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)
    return dict(zip(dict(model.named_parameters()), grads, strict=True))


def is_of_a_classifier(name, parameter):
    return any(part in CLASSIFIERS[name] for part in parameter.split('.'))


@pytest.mark.parametrize(
    ('name', 'weight'),
    [
        *((name, 0.25) for name in CLASSIFIERS),
        *(  # nothing is worked out for it: one stage, two stages
            pytest.param(x, 0, marks=[] if x in ('retinanet', 'faster_rcnn') else pytest.mark.slow)
            for x in CLASSIFIERS
        ),
    ],
)
def test_the_pattern_cls_weighs_the_teacher_s_gradients_in_classification_branches(name, weight):
    plain = build(name)
    model = build(name, teacher_head_grad=dict(cls=weight))
    expected, losses = teacher_losses(plain), teacher_losses(model)
    for key, value in losses.items():
        assert torch.equal(value, expected[key]), key
    before = gradients(plain, sum(expected.values()))
    weighed = 0
    for key, grad in gradients(model, sum(losses.values())).items():
        factor = weight if is_of_a_classifier(name, key) else 1
        weighed += factor != 1
        if before[key] is None or (factor == 0 and grad is None):
            assert grad is None, key
        else:
            torch.testing.assert_close(grad, before[key] * factor, msg=key)
    assert weighed > 0
    assert set(dict(model.named_parameters())) == set(before)
    assert all(isinstance(x, torch.nn.Parameter) for x in model.parameters())


def test_a_head_that_is_not_trained_at_all_still_teaches_the_features():
    model = build('retinanet', teacher_head_grad=0)
    grads = gradients(model, sum(teacher_losses(model).values()))
    assert {key for key, grad in grads.items() if grad is None} >= {
        key for key in grads if key.startswith('student.bbox_head')
    }
    assert grads['student.backbone.conv1.weight'].any()
    assert all(grad is not None for key, grad in grads.items() if key.startswith('teachers.'))


def test_the_first_pattern_that_is_found_counts():
    weights = {r'retina_cls': 0.5, 'cls': 0}
    plain, model = build('retinanet'), build('retinanet', teacher_head_grad=weights)
    before = gradients(plain, sum(teacher_losses(plain).values()))
    after = gradients(model, sum(teacher_losses(model).values()))
    key = 'student.bbox_head.retina_cls.weight'
    torch.testing.assert_close(after[key], before[key] * 0.5)
    assert after['student.bbox_head.cls_convs.0.conv.weight'] is None


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            dict(teacher_head_grad=dict(clss=0)),
            r"^model\.teacher_head_grad has 'clss', which matches no parameter of the "
            r"student's head; accepted: .*bbox_head\.retina_cls\.weight",
        ),
        (dict(teacher_head_grad=-1), r'^model\.teacher_head_grad is -1; accepted: a number >= 0'),
        (dict(teacher_head_grad={'(': 1}), r"^model\.teacher_head_grad is \{'\(': 1\}; accepted"),
    ],
)
def test_expressions_without_a_match_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build('retinanet', **settings)
