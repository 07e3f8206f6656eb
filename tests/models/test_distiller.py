"""The machinery: several teachers and terms, their names, and what it refuses."""

import copy

import pytest
import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
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

from ..stock_detectors import demo_batch, stock_config
from ..toy_detector import ToyDetector

TOY = dict(type='ToyDetector', data_preprocessor=dict(type='DetDataPreprocessor'))
SSIM = dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss'))
MSE = dict(type='FeatureTerm', distill_loss=dict(type='NormedMSELoss'))
DISTILLERS = ('SSSDDistiller', 'Distiller', 'SemiDistiller')


def pretrained(config=TOY):
    return dict(type='PretrainedTeacher', config=config, checkpoint=None)


def build(**kwargs):
    torch.manual_seed(0)
    return MODELS.build({'type': 'SSSDDistiller', 'student': TOY, **kwargs}).train()


def losses_of(model, data=None):
    torch.manual_seed(1)
    return model(**copy.deepcopy(data or demo_batch(model)), mode='loss')


def gradients(model, loss):
    """The gradients of a loss by parameter; of those it does not reach None."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, [*named.values()], retain_graph=True, allow_unused=True)
    return dict(zip(named, found, strict=True))


def reached(model, loss):
    """The parts of the model that a gradient reaches."""
    found = gradients(model, loss).items()
    return {
        '.'.join(name.split('.')[:2]) for name, grad in found if grad is not None and grad.any()
    }


# --- names ---


@pytest.mark.parametrize('kind', ['teachers', 'terms'])
@pytest.mark.parametrize('name', ['ssim_loss', 'loss', 'a.b', 'training', 'keys', ''])
def test_names_that_would_spoil_log_or_state_dict_are_refused(kind, name):
    config = pretrained() if kind == 'teachers' else {**SSIM, 'teacher': 'teacher'}
    with pytest.raises(ConfigError, match=rf'model\.{kind} has the name {name!r}; accepted: '):
        build(**{kind: {name: config}})


@pytest.mark.parametrize('kind', ['teachers', 'terms'])
def test_parts_other_than_dicts_of_configs_are_refused(kind):
    with pytest.raises(ConfigError, match=rf'model\.{kind} is \[1\]; accepted: configs by name'):
        build(type='Distiller', **{'teachers': dict(a=pretrained()), kind: [1]})


def test_a_term_whose_loss_is_one_of_the_student_s_is_refused():
    model = build(type='Distiller', teachers=dict(a=pretrained()), terms=dict(cls=SSIM))
    with pytest.raises(ConfigError, match=r'^model\.terms\.cls logs loss_cls, as the student does'):
        losses_of(model)


@MODELS.register_module()
class TalkativeTerm(DistillTerm):
    def __init__(self, student, teacher, **kwargs):
        super().__init__(**kwargs)

    def forward(self, student, teacher, batch_inputs, batch_data_samples):
        zero = student.feats[0].sum() * 0
        return {'loss': zero, 'loss_cls': zero}


def test_what_a_term_logs_beside_its_loss_has_its_name():
    terms = dict(talk=dict(type='TalkativeTerm'))
    losses = losses_of(build(type='Distiller', teachers=dict(a=pretrained()), terms=terms))
    assert set(losses) == {'loss_cls', 'loss_talk', 'talk_loss_cls'}


# --- a distiller inside a distiller ---


@pytest.mark.parametrize('outer', DISTILLERS)
@pytest.mark.parametrize('inner', [*DISTILLERS, SSSDDistiller])
def test_a_distiller_is_refused_as_a_student(inner, outer):
    student = dict(type=inner, student=TOY)
    teachers = {} if outer == 'SSSDDistiller' else dict(teachers=dict(a=pretrained()))
    with pytest.raises(
        ConfigError,
        match=r'^model\.student\.type is .*, which distills a student already; accepted: the config '
        'of that student alone',
    ):
        build(type=outer, student=student, **teachers)


@pytest.mark.parametrize('inner', DISTILLERS)
def test_a_distiller_s_config_as_a_teacher_s_stands_for_its_student(inner):
    config = dict(type=inner, student=stock_config('retinanet'), terms=3)
    teachers = dict(a=pretrained(config))
    model = build(type='Distiller', teachers=teachers, terms=dict(x=SSIM))
    assert type(model.teachers['a'].detector) is RetinaNet


# --- types given as classes ---


def test_a_class_does_wherever_a_name_does():
    config = stock_config('retinanet')
    config.type = RetinaNet
    teacher = dict(type=PretrainedTeacher, config=dict(config, type=RetinaNet), checkpoint=None)
    implicit = dict(type=ImplicitTeacher, neck=dict(type=LabelEncoderTeacher, use_masks=False))
    term = dict(
        type=FeatureTerm,
        teacher='large',
        adapter=dict(type=ChannelAdapter),
        distill_loss=dict(type=JSDistanceLoss),
    )
    model = build(
        type=SSSDDistiller,
        student=config,
        teacher=dict(type=LabelEncoderTeacher),
        adapter=dict(type=ChannelAdapter),
        distill_loss=dict(type=JSDistanceLoss, dim='channel'),
        teachers=dict(large=teacher, other=implicit),
        terms=dict(js=term),
    )
    assert type(model.student) is RetinaNet
    adapter = model.terms['distill'].adapter
    assert type(adapter) is ChannelAdapter
    assert [*adapter.parameters()] == []  # channels of both sides, read off them
    assert model.terms['distill'].distill_loss.dim == 'channel'
    assert model.terms['distill'].distill_coef == 10
    assert type(model.teachers['large'].detector) is RetinaNet
    losses = losses_of(model)
    assert {'loss_distill', 'loss_js', 'teacher.loss_cls', 'other.loss_cls'} <= set(losses)
    with pytest.raises(ConfigError, match=r"model\.distill_loss is .*RetinaNet'>}; accepted: "):
        build(distill_loss=dict(type=RetinaNet))


# --- what errors name ---


@pytest.mark.parametrize(
    ('kwargs', 'key'),
    [
        (dict(distill_loss=dict(tua=1)), r'model\.distill_loss: .*tua'),
        (dict(distill_loss=dict(type='SSIMLoss', dim=1)), r'model\.distill_loss: .*dim'),
        (dict(distill_loss='SSIMLoss'), r"model\.distill_loss is 'SSIMLoss'; accepted: a dict"),
        (dict(distill_loss=dict(tau=-1)), r'model\.distill_loss\b.*tau'),
        (dict(distill_loss=dict(type='FocalLoss')), r'model\.distill_loss is .*JSDistanceLoss, '),
        (dict(distill_coef=-1), r'model\.distill_coef is -1; accepted: a number >= 0'),
        (dict(adapter=3), r'model\.adapter is 3; accepted: a dict$'),
        (
            dict(adapter=dict(type='NoSuch')),
            r'model\.adapter is {.*; accepted: .* type of a module$',
        ),
        (dict(adapter=dict(width=3)), r'model\.adapter: .*width'),
        (dict(teacher=3), r'model\.teacher is 3; accepted: a dict$'),
        (
            dict(teacher=dict(num_classes=0)),
            r'model\.teacher\.num_classes is 0; accepted: 1 or more',
        ),
        (dict(teacher=dict(use_mask=1)), r'model\.teacher: .*use_mask.*accepts: in_channels, num_'),
        (dict(teacher_loss_weight='1'), r"model\.teacher_loss_weight is '1'; accepted: a number"),
    ],
)
def test_errors_of_the_preset_name_its_own_keys(kwargs, key):
    with pytest.raises(ConfigError, match=f'^{key}'):
        build(**kwargs)


@pytest.mark.parametrize(
    ('term', 'key'),
    [
        (dict(distill_loss=dict(type='SSIMLoss', tua=1)), r'distill_loss: .*tua'),
        (dict(distill_loss=dict(type='JSDistanceLoss', tau=-1)), r'distill_loss\b.*tau'),
        (dict(distill_coef=-1), r'distill_coef is -1; accepted: a number >= 0'),
        (dict(adapter=dict(width=3)), r'adapter: .*width'),
        (dict(adapter='ChannelAdapter'), r"adapter is 'ChannelAdapter'; accepted: a dict$"),
        (dict(teacher='nobody'), r"teacher is 'nobody'; accepted: .*: teacher, large$"),
        (dict(teacher=None), r'teacher is None; accepted: .*: teacher, large$'),
        (dict(teacher=['large']), r"teacher is \['large'\]; accepted: .*: teacher, large$"),
    ],
)
@pytest.mark.parametrize('name', ['ssim', 'distill_ssim', 'distill2'])
def test_errors_of_a_term_name_it(name, term, key):
    terms = {name: {**SSIM, 'teacher': 'teacher', **term}}
    with pytest.raises(ConfigError, match=rf'^model\.terms\.{name}\.{key}'):
        build(teachers=dict(large=pretrained()), terms=terms)


@pytest.mark.parametrize(
    ('teacher', 'key'),
    [
        (dict(type='PretrainedTeacher', config=TOY), r': missing .*checkpoint'),
        (pretrained(dict(type='ResNet')), r"\.config\.type is 'ResNet', which is not a detector"),
        (
            dict(type='SSIMLoss'),
            r' is .*; accepted: .* ImplicitTeacher, .*PretrainedTeacher, .*or',
        ),
        (dict(type='ImplicitTeacher', loss_weight=-1), r'\.loss_weight is -1; accepted: a number'),
        (dict(type='ImplicitTeacher', neck=dict(num_classes=0)), r'\.neck\.num_classes is 0; acc'),
    ],
)
def test_errors_of_a_teacher_name_it(teacher, key):
    with pytest.raises(ConfigError, match=rf'^model\.teachers\.large{key}'):
        build(type='Distiller', teachers=dict(large=teacher), terms=dict(x=SSIM))


@pytest.mark.parametrize('preset', [True, False])
def test_a_student_that_does_not_say_its_classes_is_named_with_the_key(preset):
    student = dict(type='UnknownClasses', data_preprocessor=dict(type='DetDataPreprocessor'))
    kwargs = dict(type='Distiller', teachers=dict(t=dict(type='ImplicitTeacher')))
    key = r'model\.teacher\.' if preset else r'model\.teachers\.t\.neck\.'
    with pytest.raises(ConfigError, match=f'^{key}num_classes is not given, and no head of model'):
        build(student=student, **({} if preset else kwargs))


@MODELS.register_module()
class UnknownClasses(ToyDetector):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bbox_head = nn.Identity()


@pytest.mark.parametrize('preset', [True, False])
@pytest.mark.parametrize('feats', ['fails', 'no pyramid'])
def test_a_student_that_cannot_be_distilled_is_named(monkeypatch, feats, preset):
    def extract_feat(self, batch_inputs):
        if feats == 'fails':
            raise RuntimeError('no such kernel')
        return dict(p3=batch_inputs)

    monkeypatch.setattr(ToyDetector, 'extract_feat', extract_feat)
    kwargs = dict(type='Distiller', teachers=dict(t=pretrained()), terms=dict(x=SSIM))
    message = 'cannot be distilled' if feats == 'fails' else 'its extract_feat gives a dict'
    with pytest.raises(ConfigError, match=rf'^model\.student \(ToyDetector\).*{message}'):
        build(**({} if preset else kwargs))


# --- boxes and images ---


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'faster_rcnn'])
def test_an_image_shape_of_three_numbers_trains(name):
    model = build(student=stock_config(name))
    data = demo_batch(model)
    expected = losses_of(model, data)
    for sample in data['data_samples']:
        sample.set_metainfo(dict(img_shape=(*sample.img_shape, 3)))
    losses = losses_of(model, data)
    for key, value in expected.items():
        pairs = zip(*(x if isinstance(x, list) else [x] for x in (losses[key], value)), strict=True)
        for ours, theirs in pairs:
            assert torch.equal(ours, theirs), key


def test_an_image_shape_of_three_numbers_meets_a_teacher_s_padding_and_a_logit_term():
    teacher = stock_config('retinanet')
    teacher.data_preprocessor.mean = [1.0, 2.0, 3.0]
    model = build(
        type='Distiller',
        student=stock_config('retinanet'),
        teachers=dict(large=pretrained(teacher)),
        terms=dict(adl=dict(type='LogitTerm')),
    )
    data = demo_batch(model)
    expected = losses_of(model, data)['loss_adl']
    for sample in data['data_samples']:
        sample.set_metainfo(dict(img_shape=(*sample.img_shape, 3)))
    assert torch.equal(losses_of(model, data)['loss_adl'], expected)


class RotatedBoxes(BaseBoxes):
    """As MMRotate's, with an angle."""

    box_dim = 5

    def _unused(self, *_args, **_kwargs):
        raise NotImplementedError

    from_instance_masks = flip_ = rescale_ = resize_ = rotate_ = project_ = translate_ = clip_ = (
        _unused
    )
    is_inside = find_inside_points = create_masks = overlaps = _unused
    centers = areas = widths = heights = property(_unused)


@pytest.mark.parametrize('kind', [torch.Tensor, RotatedBoxes])
def test_rotated_boxes_are_refused_by_name(kind):
    model = build()
    data = demo_batch(model)
    for sample in data['data_samples']:
        boxes = torch.ones(len(sample.gt_instances), 5)
        sample.gt_instances.bboxes = boxes if kind is torch.Tensor else kind(boxes)
    with pytest.raises(
        ConfigError, match=r'have 5 numbers each; .* Rotated boxes cannot be distilled'
    ):
        losses_of(model, data)


def test_boxes_of_mmdet_s_class_train_as_their_tensors_do():
    model = build()
    data = demo_batch(model)
    expected = losses_of(model, data)
    for sample in data['data_samples']:
        sample.gt_instances.bboxes = HorizontalBoxes(sample.gt_instances.bboxes)
    losses = losses_of(model, data)
    assert all(torch.equal(losses[key], value) for key, value in expected.items())


# --- which loss reaches what ---


@pytest.mark.parametrize('detach', [False, True])
def test_the_teacher_s_detection_loss_reaches_neck_and_backbone_unless_detached(detach):
    model = build(teacher=dict(detach_appearance=detach))
    losses = losses_of(model)
    parts = reached(model, losses['teacher.loss_cls'])
    own = {'student.neck', 'student.backbone'}
    assert parts == {'student.bbox_head', 'teachers.teacher'} | (set() if detach else own)
    assert reached(model, losses['loss_cls']) == {'student.bbox_head', *own}
    assert reached(model, losses['loss_distill']) == {'terms.distill', *own}


@pytest.mark.parametrize('weight', [0.5, 3.0])
def test_the_teacher_s_loss_is_weighed(weight):
    model, weighed = build(), build(teacher_loss_weight=weight)
    weighed.load_state_dict(model.state_dict())
    losses, actual = losses_of(model), losses_of(weighed)
    assert losses.keys() == actual.keys()
    for key, value in losses.items():
        factor = weight if key.startswith('teacher.') else 1
        torch.testing.assert_close(actual[key], factor * value, msg=key)
    for key in ('loss_cls', 'teacher.loss_cls', 'loss_distill'):
        factor = weight if key.startswith('teacher.') else 1
        wanted, found = gradients(model, losses[key]), gradients(weighed, actual[key])
        for name, grad in wanted.items():
            expected = None if grad is None else factor * grad
            torch.testing.assert_close(found[name], expected, msg=f'{key}: {name}')


def test_ddp_does_not_wait_for_a_teacher_of_weight_zero():
    model = build(teacher_loss_weight=0.0)
    model.parse_losses(losses_of(model))[0].backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)
    assert not any(p.requires_grad for p in model.teachers.parameters())


# --- several teachers ---


@MODELS.register_module()
class ConstantTeacher(Teacher):
    """A user's own: features of one value."""

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
        teachers=dict(
            large=pretrained(),
            two=dict(type='ConstantTeacher', value=2.0),
            second=dict(type='ImplicitTeacher', loss_weight=0.25),
        ),
        terms=dict(
            mse={**MSE, 'teacher': 'large', 'distill_coef': 3.0},
            mean=dict(type='MeanTerm', teacher='two', distill_coef=0.5),
            other={**MSE, 'teacher': 'second'},
        ),
    )


def test_each_of_several_terms_reaches_its_own_teacher():
    model = several()
    data = demo_batch(model)
    losses = losses_of(model, data)
    feats = model.extract_feat(data['inputs'])
    mine = DetectorOutputs(feats)
    made = {
        name: teacher(model.student, mine, data['inputs'], data['data_samples']).feats[0]
        for name, teacher in model.teachers.items()
    }
    assert losses['mean_seen'] == 2
    expected = {
        'loss_mean': 0.5 * (feats[0] - 2).square().mean(),
        'loss_mse': 3 * (feats[0] - made['large']).square().mean(),
        'loss_other': (feats[0] - made['second']).square().mean(),
        'second.loss_cls': 0.25 * (model.bbox_head.conv(made['second']) - 1).square().mean(),
        'teacher.loss_cls': (model.bbox_head.conv(made['teacher']) - 1).square().mean(),
    }
    assert not torch.allclose(made['second'], made['teacher'])
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)
    assert {'loss_distill', 'distill_distance.0', 'mse_distance.0', 'other_distance.0'} <= set(
        losses
    )

    student = {'student.backbone', 'student.neck'}
    head = {'student.bbox_head'}
    assert reached(model, losses['loss_mse']) == student
    assert reached(model, losses['loss_mean']) == student | {'terms.mean'}
    assert reached(model, losses['loss_other']) == student
    assert reached(model, losses['loss_distill']) == student | {'terms.distill'}
    assert reached(model, losses['second.loss_cls']) == student | head | {'teachers.second'}
    assert reached(model, losses['teacher.loss_cls']) == student | head | {'teachers.teacher'}
    model.parse_losses(losses)[0].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_state_of_several_teachers_is_under_their_names():
    model = several()
    parts = {'.'.join(key.split('.')[:2]) for key in model.state_dict() if 'student' not in key}
    assert parts == {'teachers.teacher', 'teachers.second', 'terms.distill', 'terms.mean'}
    twin = copy.deepcopy(model)
    data = demo_batch(model)
    ours, theirs = losses_of(model, data), losses_of(twin, data)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize('kind', ['SSSDDistiller', 'Distiller'])
def test_an_untrained_teacher_without_a_term_is_refused(kind):
    teachers = dict(first=pretrained(), large=pretrained())
    terms = dict(ssim={**SSIM, 'teacher': 'first'})
    with pytest.raises(
        ConfigError, match=r'^model\.teachers\.large is used by none of model\.terms; add one'
    ):
        build(type=kind, teachers=teachers, terms=terms)


def test_heads_are_run_on_the_blank_image_for_terms_that_compare_them_alone(monkeypatch):
    """Guided anchors cannot be run on a CPU."""
    head = MODELS.get('RetinaHead')

    def forward(self, feats):
        raise RuntimeError('masked_im2col: implementation for device cpu not found')

    monkeypatch.setattr(head, 'forward', forward)
    build(student=stock_config('retinanet'))
    kwargs = dict(
        student=stock_config('retinanet'), teachers=dict(a=pretrained(stock_config('fcos')))
    )
    model = build(type='Distiller', **kwargs, terms=dict(x=SSIM))
    assert not model.teachers['a'].needs_head  # nor is it on any other
    with pytest.raises(
        ConfigError, match=r'^model\.terms\.x: a head .* failed .*device cpu not found'
    ):
        build(type='Distiller', **kwargs, terms=dict(x=dict(type='LogitTerm')))


def test_a_term_that_would_compare_heads_finds_none_in_two_stage_detectors():
    detector = stock_config('faster_rcnn')
    terms = dict(mean=dict(type='MeanTerm'))
    model = build(
        type='Distiller', student=detector, teachers=dict(a=pretrained(detector)), terms=terms
    )
    assert losses_of(model)['loss_mean'] > 0


def test_a_data_preprocessor_from_outside_goes_to_a_student_that_has_none():
    mine, theirs = (dict(type='DetDataPreprocessor', mean=[x], std=[1.0]) for x in (1.0, 2.0))
    for own, expected in ((None, 2.0), (mine, 1.0)):
        model = build(student={**TOY, 'data_preprocessor': own}, data_preprocessor=theirs)
        assert model.data_preprocessor is model.student.data_preprocessor
        assert model.data_preprocessor.mean.flatten().tolist() == [expected]


@pytest.mark.parametrize(('kind', 'name'), [('teachers', 'teacher'), ('terms', 'distill')])
def test_the_preset_s_own_parts_are_not_replaced(kind, name):
    config = dict(type='SSSDDistiller', student=stock_config('retinanet'), **{kind: {name: {}}})
    with pytest.raises(ConfigError, match=rf"^model\.{kind}\.{name} is the preset's own"):
        MODELS.build(config)


@MODELS.register_module()
class ClassifierTeacher(Teacher):
    """Of a classifier's thousand classes."""

    num_classes = 1000

    def __init__(self, student):
        super().__init__()

    def forward(self, student, outputs, batch_inputs, batch_data_samples):
        return outputs.detach()


def test_a_teacher_s_classes_are_not_the_student_s():
    """Those of the data are checked against this number."""
    student = stock_config('retinanet')
    teachers = dict(large=dict(type='ClassifierTeacher'))
    config = dict(type='Distiller', student=student, teachers=teachers, terms=dict(ssim=SSIM))
    assert MODELS.build(config).count_classes() == student.bbox_head.num_classes
