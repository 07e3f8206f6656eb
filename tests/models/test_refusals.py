"""Settings that cannot work are refused, and the error begins with the setting's key."""

import copy
import re

import pytest
import torch
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from torch import nn

from mmdet_sssd import ConfigError
from mmdet_sssd.models import DetectorTeacher

from ..distillers import ADL, MSE, SSIM, TOY, build, losses_of, pretrained
from ..stock_detectors import demo_batch, stock_config
from ..toy_detector import ToyDetector

RETINANET = stock_config('retinanet')


def checkpointed_head():
    student = stock_config('faster_rcnn')
    layers = dict(type='ResLayer', depth=50, stage=3, stride=2, with_cp=True)
    student.roi_head.shared_head = layers
    return student


@MODELS.register_module()
class UnknownClasses(ToyDetector):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bbox_head = nn.Identity()


def starts_with(key: str):
    return pytest.raises(ConfigError, match=rf'^{re.escape(key)}[ :]')


PRESET = [  # below ``model``, of a student with one level of 8 channels
    ('distill_loss', dict(distill_loss='SSIMLoss')),
    ('distill_loss', dict(distill_loss=dict(tua=1))),
    ('distill_loss', dict(distill_loss=dict(type='FocalLoss'))),
    ('distill_loss.dim', dict(distill_loss=dict(dim='pixel'))),
    ('distill_coef', dict(distill_coef=-1)),
    ('adapter', dict(adapter=3)),
    ('adapter', dict(adapter=dict(type='NoSuch'))),
    ('adapter.in_channels', dict(adapter=dict(in_channels=16))),
    ('adapter.kernel_size', dict(adapter=dict(kernel_size=2))),
    ('teacher', dict(teacher=dict(use_mask=1))),
    ('teacher.in_channels', dict(teacher=dict(in_channels=16))),
    ('teacher.in_channels', dict(teacher=dict(in_channels=[16, 0]))),
    ('teacher.in_channels', dict(teacher=dict(in_channels=[]))),
    ('teacher.num_classes', dict(teacher=dict(num_classes=0))),
    ('teacher.num_classes', dict(student={**TOY, 'type': 'UnknownClasses'})),
    ('teacher.refine_convs', dict(teacher=dict(refine_convs=0))),
    ('teacher_loss_weight', dict(teacher_loss_weight='1')),
    ('teacher_head_grad', dict(teacher_head_grad=-1)),
    ('teacher_head_grad', dict(teacher_head_grad={'(': 1})),
    ('teacher_head_grad', dict(teacher_head_grad=dict(clss=0))),
    ('start_level', dict(start_level=1)),
    ('start_level', dict(start_level=-1)),
    ('start_level', dict(start_level=0.0)),
    ('reuse_assignment', dict(student=stock_config('rtmdet'), reuse_assignment=True)),
    ('reuse_assignment', dict(student=stock_config('dino'), reuse_assignment=True)),
    ('student', dict(student=checkpointed_head())),
    ('teachers', dict(type='Distiller', teachers=[1])),
    ('teachers.teacher', dict(teachers=dict(teacher={}))),
    ('terms.distill', dict(terms=dict(distill={}))),
    *(('teachers', dict(teachers={name: pretrained()})) for name in ('a.b', 'training', '')),
    *(('terms', dict(terms={name: SSIM})) for name in ('ssim_loss', 'loss', 'keys')),
    ('student', dict(student=3)),
    ('student', dict(student={**RETINANET, 'backbone': None})),
    ('student.type', dict(student=dict(type='SoftTeacher'))),
    ('student.type', dict(student=dict(type='Detectron2Wrapper'))),
    ('student.type', dict(student=dict(type='NoSuchDetector'))),
    ('student.type', dict(student=dict(type='QDTrack'))),
    ('student.type', dict(student=dict(type=type('CLRNet', (BaseDetector,), {})))),
    ('student.type', dict(student=dict(type='GLIP', language_model=dict(type='BertModel')))),
    ('student.type', dict(student=dict(type='SSSDDistiller', student=TOY))),
]


@pytest.mark.parametrize(('key', 'settings'), PRESET, ids=str)
def test_the_preset_s_settings(key, settings):
    with starts_with(f'model.{key}'):
        build(**{'student': TOY, **settings})


def of_other_channels():
    config = stock_config('retinanet')
    config.neck.out_channels = config.bbox_head.in_channels = 48
    return config


def of_other_classes():
    config = stock_config('retinanet')
    config.bbox_head.num_classes = 4
    return config


TERMS = [  # below ``model.terms.x``, of a student and a teacher of equal levels
    ('.teacher', 3),
    ('', dict(type='SSIMLoss')),
    ('', dict(type='FeatureTerm')),
    ('', {**ADL, 'coef': 2}),
    ('', ADL),  # no dense head
    ('.distill_loss', {**SSIM, 'distill_loss': dict(type='FocalLoss')}),
    ('.distill_loss.tau', {**SSIM, 'distill_loss': dict(type='JSDistanceLoss', tau=-1)}),
    ('.distill_coef', {**SSIM, 'distill_coef': -1}),
    ('.adapter', {**SSIM, 'adapter': 'ChannelAdapter'}),
    ('.teacher', {**SSIM, 'teacher': 'nobody'}),
    ('.teacher', {**SSIM, 'teacher': None}),
    ('.teacher', {**SSIM, 'teacher': ['large']}),
    ('.levels', {**SSIM, 'levels': [0, 0]}),
    ('.levels', {**SSIM, 'levels': [1]}),
    ('.levels', {**SSIM, 'levels': [None]}),
]


@pytest.mark.parametrize(('key', 'term'), TERMS, ids=str)
def test_a_term_s_settings(key, term):
    term = {'teacher': 'large', **term} if isinstance(term, dict) else term
    with starts_with(f'model.terms.x{key}'):
        build(TOY, teachers=dict(large=pretrained()), terms=dict(x=term))


@pytest.mark.parametrize(
    ('key', 'term', 'teacher'),
    [
        ('.adapter.type', {**SSIM, 'adapter': dict(type='FeatureAdapter')}, of_other_channels()),
        ('', SSIM, TOY),  # which has no level of a like size
        ('', ADL, of_other_classes()),
        ('.distill_loss', {**ADL, 'distill_loss': dict(type='SSIMLoss')}, RETINANET),
    ],
)
def test_a_term_beside_a_teacher_that_does_not_fit(key, term, teacher):
    student = stock_config('retinanet')
    if teacher is TOY:
        student.neck.start_level, student.neck.num_outs = 3, 1
    with starts_with(f'model.terms.x{key}'):
        build(student, type='Distiller', teachers=dict(a=pretrained(teacher)), terms=dict(x=term))


TEACHERS = [  # below ``model.teachers.x``
    ('', dict(type='PretrainedTeacher', config=TOY)),
    ('.config', pretrained('gone.py')),
    ('.config', pretrained(dict(depth=18))),
    ('.config.type', pretrained(dict(type='ResNet'))),
    ('.loss_weight', dict(type='ImplicitTeacher', loss_weight=-1)),
    ('.neck.num_classes', dict(type='ImplicitTeacher', neck=dict(num_classes=0))),
]


@pytest.mark.parametrize(('key', 'teacher'), TEACHERS, ids=str)
def test_a_teacher_s_settings(key, teacher):
    with starts_with(f'model.teachers.x{key}'):
        build(TOY, type='Distiller', teachers=dict(x=teacher), terms=dict(y=SSIM))


@pytest.mark.parametrize('kind', ['SSSDDistiller', 'Distiller'])
def test_an_untrained_teacher_without_a_term(kind):
    teachers, terms = dict(first=pretrained(), large=pretrained()), {**SSIM, 'teacher': 'first'}
    with starts_with('model.teachers.large'):
        build(TOY, type=kind, teachers=teachers, terms=dict(ssim=terms))
    with starts_with('model.teachers'):
        build(TOY, type='Distiller', terms=dict(ssim=SSIM))


@MODELS.register_module()
class Follower(DetectorTeacher):
    """It changes when a term runs it, which labels do not need."""

    def __init__(self, student):
        super().__init__(copy.deepcopy(student))


@pytest.mark.parametrize(
    ('key', 'settings'),
    [
        ('pseudo_score_thr', dict(pseudo_score_thr=1.5)),
        ('teachers', dict(teachers=dict(a=dict(type='ImplicitTeacher')))),
        ('teachers', dict(teachers=dict(a=dict(type='Follower')))),
        ('teachers.a', dict(teachers=dict(a=pretrained(of_other_classes())))),
        ('student', dict(student=stock_config('mask_rcnn'))),
    ],
)
def test_semi_supervised_settings(key, settings):
    defaults = dict(student=RETINANET, teachers=dict(a=pretrained(RETINANET)), terms=dict(x=SSIM))
    with starts_with(f'model.{key}'):
        build(**{'type': 'SemiDistiller', **defaults, **settings})


def test_a_term_that_logs_a_loss_of_the_student():
    teachers, terms = dict(a=pretrained()), dict(cls={**MSE, 'teacher': 'a'})
    model = build(TOY, teachers=teachers, terms=terms)
    with starts_with('model.terms.cls'):
        losses_of(model)


def test_rotated_boxes():
    model = build(TOY)
    data = demo_batch(model)
    for sample in data['data_samples']:
        sample.gt_instances.bboxes = torch.ones(len(sample.gt_instances), 5)
    with pytest.raises(ConfigError, match='have 5 numbers each'):
        losses_of(model, data)


@pytest.mark.parametrize(
    ('loss', 'key', 'value'),
    [
        ('JSDistanceLoss', 'tau', 0),
        ('JSDistanceLoss', 'tau', float('inf')),
        ('AdaptiveDistillLoss', 'alpha', 1.5),
        ('AdaptiveDistillLoss', 'beta', -1),
        ('AdaptiveDistillLoss', 'gamma', 0.5),
        ('AdaptiveDistillLoss', 'theta', 0),
    ],
)
def test_a_loss_s_settings(loss, key, value):
    with starts_with(key):
        MODELS.build({'type': loss, key: value})
