"""The machinery: several teachers and terms, what each loss reaches, and what students may be."""

import copy

import pytest
import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmdet.structures.bbox import HorizontalBoxes
from torch import nn

from mmdet_sssd import ConfigError
from mmdet_sssd.models import (
    ChannelAdapter,
    DetectorOutputs,
    DistillTerm,
    FeatureTerm,
    ImplicitTeacher,
    JSDistanceLoss,
    LabelEncoderTeacher,
    PretrainedTeacher,
    SSSDDistiller,
    Teacher,
    probe,
)

from ..distillers import (
    ADL,
    MSE,
    SSIM,
    TOY,
    assert_equal,
    backward,
    build,
    gradients,
    losses_of,
    pretrained,
    without_gradient,
)
from ..stock_detectors import demo_batch, stock_config
from ..toy_detector import ToyDetector


def reached(model, loss) -> set[str]:
    """The parts of the model that a gradient reaches."""
    found = gradients(model, loss).items()
    return {'.'.join(name.split('.')[:2]) for name, x in found if x is not None and x.any()}


def test_a_class_does_wherever_a_name_does():
    student = {**stock_config('retinanet'), 'type': RetinaNet}
    model = build(
        student,
        type=SSSDDistiller,
        teacher=dict(type=LabelEncoderTeacher),
        adapter=dict(type=ChannelAdapter),
        distill_loss=dict(type=JSDistanceLoss, dim='channel'),
        teachers=dict(
            large=dict(type=PretrainedTeacher, config=student, checkpoint=None),
            other=dict(type=ImplicitTeacher, neck=dict(type=LabelEncoderTeacher)),
        ),
        terms=dict(
            js=dict(type=FeatureTerm, teacher='large', distill_loss=dict(type=JSDistanceLoss))
        ),
    )
    assert [*model.terms['distill'].adapter.parameters()] == []  # both sides' channels were read
    assert model.terms['distill'].distill_loss.dim == 'channel'
    assert model.terms['distill'].distill_coef == 10
    losses = losses_of(model)
    assert {'loss_distill', 'loss_js', 'teacher.loss_cls', 'other.loss_cls'} <= set(losses)


def test_an_image_shape_may_have_three_numbers():
    other = stock_config('retinanet')
    other.data_preprocessor.mean = [1.0, 2.0, 3.0]  # images are converted, padding too
    teachers, terms = dict(large=pretrained(other)), dict(adl={**ADL, 'teacher': 'large'})
    model = build('retinanet', teachers=teachers, terms=terms)
    data = demo_batch(model)
    expected = losses_of(model, data)
    for sample in data['data_samples']:
        sample.set_metainfo(dict(img_shape=(*sample.img_shape, 3)))
    assert_equal(losses_of(model, data), expected)


def test_boxes_of_mmdet_s_class_train_as_tensors():
    model = build(TOY)
    data = demo_batch(model)
    expected = losses_of(model, data)
    for sample in data['data_samples']:
        sample.gt_instances.bboxes = HorizontalBoxes(sample.gt_instances.bboxes)
    assert_equal(losses_of(model, data), expected)


def test_a_detached_teacher_s_loss_reaches_no_features():
    model = build(TOY, teacher=dict(detach_appearance=True))
    losses, features = losses_of(model), {'student.neck', 'student.backbone'}
    assert reached(model, losses['teacher.loss_cls']) == {'student.bbox_head', 'teachers.teacher'}
    assert reached(model, losses['loss_cls']) == {'student.bbox_head', *features}
    assert reached(model, losses['loss_distill']) == {'terms.distill', *features}


def test_ddp_does_not_wait_for_a_teacher_of_weight_zero():
    model = build(TOY, teacher_loss_weight=0.0)
    backward(model, losses_of(model))
    assert without_gradient(model) == []
    assert not any(p.requires_grad for p in model.teachers.parameters())


@MODELS.register_module()
class ConstantTeacher(Teacher):
    """A user's own: features of one value, and more classes than the student has."""

    num_classes = 1000

    def __init__(self, student, value=0.0):
        super().__init__()
        self.value = value
        assert probe(student).channels == (8,)

    def forward(self, student, outputs, batch_inputs, batch_data_samples):
        return DetectorOutputs(tuple(torch.full_like(x, self.value) for x in outputs.feats))


@MODELS.register_module()
class MeanTerm(DistillTerm):
    """A user's own: logs what it is given."""

    needs_head = True

    def __init__(self, student, teacher, **kwargs):
        super().__init__(**kwargs)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, student, teacher, batch_inputs, batch_data_samples):
        assert student.head is teacher.head is student.cls_scores is None
        assert not teacher.feats[0].requires_grad
        loss = self.scale * (student.feats[0] - teacher.feats[0]).square().mean()
        return {'loss': loss, 'seen': teacher.feats[0].mean()}


def several():
    return build(
        TOY,
        teachers=dict(
            two=dict(type='ConstantTeacher', value=2.0),
            large=pretrained(),
            second=dict(type='ImplicitTeacher', loss_weight=0.25),
        ),
        terms=dict(
            mse={**MSE, 'teacher': 'large', 'distill_coef': 3.0},
            mean=dict(type='MeanTerm', teacher='two', distill_coef=0.5),
            other={**MSE, 'teacher': 'second'},
        ),
    )


def test_each_of_several_terms_meets_its_own_teacher():
    model = several()
    data = demo_batch(model)
    losses, (feats,) = losses_of(model, data), model.extract_feat(data['inputs'])
    mine = DetectorOutputs((feats,))
    made = {
        name: teacher(model.student, mine, data['inputs'], data['data_samples']).feats[0]
        for name, teacher in model.teachers.items()
    }
    assert losses['mean_seen'] == 2
    expected = {
        'loss_mean': 0.5 * (feats - 2).square().mean(),
        'loss_mse': 3 * (feats - made['large']).square().mean(),
        'loss_other': (feats - made['second']).square().mean(),
        'second.loss_cls': 0.25 * (model.bbox_head.conv(made['second']) - 1).square().mean(),
        'teacher.loss_cls': (model.bbox_head.conv(made['teacher']) - 1).square().mean(),
    }
    assert not torch.allclose(made['second'], made['teacher'])
    torch.testing.assert_close({key: losses[key] for key in expected}, expected)
    assert {f'{x}_distance.0' for x in ('distill', 'mse', 'other')} <= set(losses)

    student, head = {'student.backbone', 'student.neck'}, {'student.bbox_head'}
    for name, parts in {
        'loss_mse': student,
        'loss_mean': student | {'terms.mean'},
        'loss_other': student,
        'loss_distill': student | {'terms.distill'},
        'second.loss_cls': student | head | {'teachers.second'},
        'teacher.loss_cls': student | head | {'teachers.teacher'},
    }.items():
        assert reached(model, losses[name]) == parts, name
    backward(model, losses)
    assert without_gradient(model) == []


def test_a_term_s_further_value_is_not_taken_for_a_loss(monkeypatch):
    model = several()
    logs = {'loss': torch.ones(()), 'loss_box': torch.ones(())}
    monkeypatch.setattr(type(model.terms['mean']), 'forward', lambda *_: logs)
    with pytest.raises(ConfigError, match=r'^model\.terms\.mean: logs loss_box'):
        losses_of(model)


def test_state_is_under_the_names_of_student_teachers_and_terms():
    model = several()
    parts = {'.'.join(key.split('.')[:2]) for key in model.state_dict()}
    own = {'teachers.teacher', 'teachers.second', 'terms.distill', 'terms.mean'}
    assert parts == own | {f'student.{x}' for x in ('backbone', 'neck', 'bbox_head')}
    assert 'teachers.teacher.neck.class_vectors.weight' in model.state_dict()
    assert_equal(losses_of(copy.deepcopy(model)), losses_of(model))


def test_heads_meet_the_blank_image_for_terms_on_them_alone(monkeypatch):
    """Guided anchors cannot be run on a CPU."""

    def forward(self, feats):
        raise RuntimeError('masked_im2col: implementation for device cpu not found')

    monkeypatch.setattr(MODELS.get('RetinaHead'), 'forward', forward)
    build('retinanet')
    settings = dict(type='Distiller', teachers=dict(a=pretrained(stock_config('fcos'))))
    model = build('retinanet', **settings, terms=dict(x=SSIM))
    assert not model.teachers['a'].needs_head  # nor is it on any other
    with pytest.raises(ConfigError, match=r'^model\.terms\.x: a head .* failed .*device cpu not f'):
        build('retinanet', **settings, terms=dict(x=ADL))


def test_a_term_on_heads_finds_none_in_two_stage_detectors():
    teachers = dict(a=pretrained(stock_config('faster_rcnn')))
    terms = dict(mean=dict(type='MeanTerm'))
    model = build('faster_rcnn', type='Distiller', teachers=teachers, terms=terms)
    assert losses_of(model)['loss_mean'] > 0


def test_an_outer_data_preprocessor_serves_a_student_without_one():
    mine, theirs = (dict(type='DetDataPreprocessor', mean=[x], std=[1.0]) for x in (1.0, 2.0))
    for own, expected in ((None, 2.0), (mine, 1.0)):
        model = build({**TOY, 'data_preprocessor': own}, data_preprocessor=theirs)
        assert model.data_preprocessor is model.student.data_preprocessor
        assert model.data_preprocessor.mean.flatten().tolist() == [expected]


def test_a_student_without_feature_levels_is_named(monkeypatch):
    monkeypatch.setattr(ToyDetector, 'extract_feat', lambda _, images: dict(p3=images))
    message = r'^model\.student \(ToyDetector\): its extract_feat gives a dict'
    with pytest.raises(ConfigError, match=message):
        build(TOY, type='Distiller', teachers=dict(t=pretrained()), terms=dict(x=SSIM))
