"""What the teacher's loss weighs, by loss and by what it trains."""

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from ..distillers import TOY, assert_equal, build, gradients, losses_of
from ..toy_detector import ToyDetector

CLASSIFIERS = {  # the parameters that a classification loss alone reaches in stock's own pass
    'retinanet': {'cls_convs', 'retina_cls'},
    'fcos': {'cls_convs', 'conv_cls'},
    'faster_rcnn': {'rpn_cls', 'fc_cls'},
    'yolox': {'multi_level_cls_convs', 'multi_level_conv_cls'},
    'rtmdet': {'cls_convs', 'rtm_cls'},
    'deformable_detr': {'cls_branches'},
}


def teacher_losses(model):
    losses = {key: x for key, x in losses_of(model).items() if key.startswith('teacher.')}
    return {key: sum(x) if isinstance(x, list) else x for key, x in losses.items() if 'loss' in key}


def teacher_gradients(model):
    return gradients(model, sum(teacher_losses(model).values()))


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
def test_the_pattern_cls_weighs_gradients_of_classification_branches(name, weight):
    plain, model = build(name), build(name, teacher_head_grad=dict(cls=weight))
    assert_equal(teacher_losses(model), teacher_losses(plain))
    before, weighed = teacher_gradients(plain), 0
    for key, grad in teacher_gradients(model).items():
        is_weighed = any(part in CLASSIFIERS[name] for part in key.split('.'))
        weighed += is_weighed
        if before[key] is None or (is_weighed and weight == 0 and grad is None):
            assert grad is None, key
        else:
            torch.testing.assert_close(grad, before[key] * (weight if is_weighed else 1), msg=key)
    assert weighed > 0
    assert all(isinstance(x, torch.nn.Parameter) for x in model.parameters())


def test_a_head_that_is_not_trained_still_teaches_the_features():
    grads = teacher_gradients(build('retinanet', teacher_head_grad=0))
    assert all(grad is None for key, grad in grads.items() if key.startswith('student.bbox_head'))
    assert grads['student.backbone.conv1.weight'].any()
    assert all(grad is not None for key, grad in grads.items() if key.startswith('teachers.'))


def test_the_first_pattern_that_is_found_counts():
    before = teacher_gradients(build('retinanet'))
    weights = {r'retina_cls': 0.5, 'cls': 0}
    after = teacher_gradients(build('retinanet', teacher_head_grad=weights))
    key = 'student.bbox_head.retina_cls.weight'
    torch.testing.assert_close(after[key], before[key] * 0.5)
    assert after['student.bbox_head.cls_convs.0.conv.weight'] is None


@MODELS.register_module()
class SharingDetector(ToyDetector):
    """Shares the weight of two layers of its head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bbox_head.cls, self.bbox_head.reg = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 1)
        self.bbox_head.reg.weight = self.bbox_head.cls.weight

    def loss(self, batch_inputs, batch_data_samples):
        (x,), head = self.extract_feat(batch_inputs), self.bbox_head
        return {f'loss_{key}': getattr(head, key)(x).square().mean() for key in ('cls', 'reg')}


def test_a_shared_parameter_has_a_factor_for_each_of_its_names():
    student, weight = {**TOY, 'type': 'SharingDetector'}, 'student.bbox_head.cls.weight'
    plain, model = build(student), build(student, teacher_head_grad={'cls': 0.5, 'reg': 0})
    losses = losses_of(model)
    found = gradients(model, losses['teacher.loss_cls'] + losses['teacher.loss_reg'])[weight]
    expected = gradients(plain, losses_of(plain)['teacher.loss_cls'])[weight]
    assert expected.any()
    torch.testing.assert_close(found, 0.5 * expected)
