import copy
import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import load_state_dict as load_checkpoint_weights
from mmengine.structures import InstanceData
from torch import nn

from mmdet_sssd import ConfigError
from mmdet_sssd.errors import user_error
from mmdet_sssd.models import SSSDDistiller
from mmdet_sssd.models.replay import fresh_samples, given_feats

from ..stock_detectors import CONFIGS, NUM_CLASSES, demo_batch, stock_config

DETECTORS = sorted(CONFIGS)
ANCHORED = ('retinanet', 'fcos', 'faster_rcnn')


def build(name: str, **kwargs) -> SSSDDistiller:
    """A distiller as a runner makes it: built, initialised, in training mode."""
    model = MODELS.build(dict(type='SSSDDistiller', student=stock_config(name), **kwargs))
    model.init_weights()
    return model.train()


def build_stock(name: str) -> nn.Module:
    model = MODELS.build(stock_config(name))
    model.init_weights()
    return model.train()


def losses_of(model, seed=0, **data) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)  # R-CNNs sample at random
    return model(**data, mode='loss')


def flat(losses: dict) -> dict[str, torch.Tensor]:
    return {k: torch.stack(list(v)) if isinstance(v, list) else v for k, v in losses.items()}


@pytest.mark.parametrize('name', DETECTORS)
def test_a_step_gives_all_losses_and_gradients(name):
    model = build(name)
    losses = losses_of(model, **demo_batch(model, with_mask=name == 'mask_rcnn'))
    total, logged = model.parse_losses(losses)
    total.backward()
    student = {k for k in logged if k.startswith(('loss_cls', 'loss_bbox', 's0.loss', 'loss_rpn'))}
    assert student
    assert {f'teacher.{k}' for k in student} <= set(logged)
    assert 0 < logged['loss_distill'] <= model.terms['distill'].distill_coef
    assert all(v.isfinite() for v in logged.values())
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize('name', DETECTORS)
def test_the_student_s_losses_and_buffers_are_the_stock_detector_s(name):
    """Also after a second step: the teacher's pass leaves no statistics, counts or histories."""
    torch.manual_seed(1)
    stock = build_stock(name)
    model = build(name)
    model.student.load_state_dict(stock.state_dict())
    for seed in (0, 1):
        data = demo_batch(stock, with_mask=name == 'mask_rcnn')
        expected = flat(losses_of(stock, seed, **copy.deepcopy(data)))
        actual = flat(losses_of(model, seed, **data))
        for key, value in expected.items():
            assert torch.equal(actual[key], value), key
        for key, value in stock.named_buffers():
            assert torch.equal(model.student.get_buffer(key), value), key
    if name == 'dynamic_rcnn':
        assert model.roi_head.iou_history == stock.roi_head.iou_history
        assert model.roi_head.beta_history == stock.roi_head.beta_history


@MODELS.register_module()
class Stub(nn.Module):
    """Stands in for backbone or neck and returns what it was given to return."""

    def __init__(self, feats=None):
        super().__init__()
        self.feats = feats

    def forward(self, x):
        return x if self.feats is None else self.feats


@pytest.mark.parametrize('which', ['teacher', 'random'])
@pytest.mark.parametrize('name', ANCHORED)
def test_replayed_loss_equals_a_detector_that_computes_these_features(name, which):
    model = build(name)
    data = demo_batch(model)
    feats = model.extract_feat(data['inputs'])
    if which == 'teacher':
        feats = model.teachers['teacher'].neck(feats, data['inputs'], data['data_samples'])
    else:
        feats = tuple(torch.randn_like(x) for x in feats)
    stubbed = copy.deepcopy(model.student)
    stubbed.backbone, stubbed.neck = Stub(tuple(x.detach() for x in feats)), Stub()
    expected = flat(losses_of(stubbed, **copy.deepcopy(data)))
    with given_feats(model.student, feats):
        actual = flat(losses_of(model.student, **data))
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def test_the_whole_loss_is_the_sum_that_the_method_says():
    model = build('retinanet', distill_coef=7.0, distill_loss=dict(type='NormedMSELoss'))
    data = demo_batch(model)
    losses = flat(losses_of(model, **copy.deepcopy(data)))
    feats = model.extract_feat(data['inputs'])
    target = model.teachers['teacher'].neck(feats, data['inputs'], data['data_samples'])

    def normed(x):
        return (x - x.mean((2, 3), keepdim=True)) / (
            x.var((2, 3), unbiased=False, keepdim=True) + 1e-5
        ).sqrt()

    squares = [
        (normed(x) - normed(t)).square()
        for x, t in zip(model.terms['distill'].adapter(feats), target, strict=True)
    ]
    expected = 7 * sum(x.sum() for x in squares) / sum(x.numel() for x in squares)
    torch.testing.assert_close(losses['loss_distill'], expected)


@pytest.mark.parametrize(
    ('kwargs', 'expected'),
    [
        (dict(), 10),
        (dict(distill_loss=dict(type='NormedMSELoss')), 1),
        (dict(distill_loss=dict(type='NormedMSELoss'), distill_coef=3), 3),
        (dict(distill_coef=0), 0),
    ],
)
def test_the_coefficient_is_the_loss_s_own_unless_one_is_given(kwargs, expected):
    assert build('retinanet', **kwargs).terms['distill'].distill_coef == expected


def test_one_backbone_forward_a_step():
    model = build('retinanet')
    calls = []
    model.student.backbone.register_forward_hook(lambda *_: calls.append(1))
    losses_of(model, **demo_batch(model))
    assert len(calls) == 1


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn', 'rtmdet'])
def test_without_distillation_three_steps_equal_the_stock_detector_s_to_the_bit(name):
    torch.manual_seed(3)
    stock = build_stock(name)
    torch.manual_seed(3)
    model = build(name, distill_coef=0.0, teacher_loss_weight=0.0)
    assert all(
        torch.equal(x, model.student.state_dict()[key]) for key, x in stock.state_dict().items()
    ), 'another initialisation'
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        for m in (stock, model)
    ]
    for step in range(3):
        for m, optimizer in zip((stock, model), optimizers, strict=True):
            total, _ = m.parse_losses(losses_of(m, step, **demo_batch(m)))
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_value_(m.parameters(), 1.0)
            optimizer.step()
    for key, value in stock.state_dict().items():
        assert torch.equal(model.student.state_dict()[key], value), key


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn', 'mask_rcnn'])
def test_predictions_are_the_student_s_alone(name):
    config = stock_config(name)
    config.test_cfg.get('rcnn', config.test_cfg).score_thr = 0.0
    stock = MODELS.build(copy.deepcopy(config)).eval()
    model = MODELS.build(dict(type='SSSDDistiller', student=config)).eval()
    stock.load_state_dict(model.student.state_dict())
    with torch.no_grad():
        ours = model(**demo_batch(model), mode='predict')
        theirs = stock(**demo_batch(stock), mode='predict')
    assert sum(len(x.pred_instances) for x in theirs) > 20
    for x, y in zip(ours, theirs, strict=True):
        for key, value in y.pred_instances.items():
            assert torch.equal(x.pred_instances[key], value), key


def test_state_dict_has_student_teacher_and_adapter_and_nothing_else():
    model = build('retinanet')
    parts = {'student.': model.student, 'teachers.teacher.neck.': model.teachers['teacher'].neck}
    parts['terms.distill.adapter.'] = model.terms['distill'].adapter
    expected = {f'{prefix}{key}' for prefix, part in parts.items() for key in part.state_dict()}
    assert {*model.state_dict()} == expected


def test_a_stock_state_dict_loads_into_the_student():
    stock, model = build_stock('retinanet'), build('retinanet')
    result = model.load_state_dict(stock.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(not key.startswith('student.') for key in result.missing_keys)
    for key, value in stock.state_dict().items():
        assert torch.equal(model.student.state_dict()[key], value), key
    again = build('retinanet')
    again.load_state_dict(model.state_dict())  # strict
    assert torch.equal(again.student.backbone.conv1.weight, stock.backbone.conv1.weight)


def test_another_number_of_classes_leaves_the_layers_that_differ_as_they_were():
    """Fine-tuning, through the loader that load_from and init_cfg use."""
    config = stock_config('retinanet')
    config.bbox_head.num_classes = NUM_CLASSES + 2
    stock, model = MODELS.build(config), build('retinanet')
    before = copy.deepcopy(model.state_dict())
    load_checkpoint_weights(model, stock.state_dict())
    for key, value in stock.state_dict().items():
        expected = before[f'student.{key}'] if 'retina_cls' in key else value
        assert torch.equal(model.student.state_dict()[key], expected), key


@pytest.mark.parametrize('owner', ['student', 'distiller'])
def test_init_cfg_loads_a_stock_checkpoint(owner, tmp_path):
    stock = build_stock('retinanet')
    path = str(tmp_path / 'stock.pth')
    torch.save(dict(meta={}, state_dict=stock.state_dict()), path)
    student, pretrained = stock_config('retinanet'), dict(type='Pretrained', checkpoint=path)
    config = dict(type='SSSDDistiller', student=student)
    (student if owner == 'student' else config)['init_cfg'] = pretrained
    model = MODELS.build(config)
    model.init_weights()
    for key, value in stock.state_dict().items():
        assert torch.equal(model.student.state_dict()[key], value), key


def test_mixed_and_foreign_state_dicts_are_refused():
    model, weights = build('retinanet'), build('retinanet').state_dict()
    mixture = {**weights, 'neck.fpn_convs.0.conv.bias': torch.zeros(32)}
    with pytest.raises(
        ConfigError, match=r'of a distiller \(student\..*stock detector \(neck\.fpn'
    ):
        load_checkpoint_weights(model, mixture)
    with pytest.raises(ConfigError, match=r'none of the 1 weights .* model\.student, a RetinaNet'):
        load_checkpoint_weights(model, {'conv1.weight': torch.zeros(64, 3, 7, 7)})


def test_attributes_lead_to_the_student():
    model = build('faster_rcnn')
    assert model.roi_head is model.student.roi_head
    assert model.with_rpn
    assert model.with_neck
    assert model.with_bbox
    with pytest.raises(AttributeError, match='no_such_thing'):
        _ = model.no_such_thing


@pytest.mark.parametrize('detach', [True, False])
def test_detach_student_leaves_the_distillation_loss_to_the_adapter(detach):
    model = build('retinanet')
    model.terms['distill'].detach_student = detach
    losses_of(model, **demo_batch(model))['loss_distill'].backward()
    assert all(p.grad is not None for p in model.terms['distill'].adapter.parameters())
    assert all(p.grad is None for p in model.teachers.parameters())
    assert (model.student.backbone.conv1.weight.grad is None) == detach


@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize('counts', [(0, 2), (0, 0)])
def test_images_without_objects_train_on(name, counts):
    model = build(name)
    data = demo_batch(model, counts, with_mask=name == 'mask_rcnn')
    total, _ = model.parse_losses(losses_of(model, **data))
    total.backward()
    assert total.isfinite()
    ours = [*model.teachers.named_parameters(), *model.terms.named_parameters()]
    assert [n for n, p in ours if p.grad is None] == []


BAD_BOXES = {
    'empty': [20, 20, 20, 20],
    'thin': [20, 20, 20.5, 60],
    'reversed': [60, 60, 20, 20],
    'outside': [500, 500, 600, 600],
    'sliver at the edge': [-30, 10, 0.4, 40],
    'nan': [float('nan'), 10, 40, 40],
}


@pytest.mark.parametrize('bad', BAD_BOXES)
@pytest.mark.parametrize('name', ANCHORED)
def test_degenerate_boxes_are_left_out_of_both_passes(name, bad):
    model = build(name)
    data = demo_batch(model)
    expected = flat(losses_of(model, **copy.deepcopy(data)))
    for sample in data['data_samples']:
        instances = sample.gt_instances
        box = torch.tensor([BAD_BOXES[bad]], dtype=torch.float32)
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([instances.bboxes, box]),
            labels=torch.cat([instances.labels, torch.tensor([1])]),
        )
    actual = flat(losses_of(model, **data))
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert model.num_dropped_boxes == 2
    assert len(data['data_samples'][0].gt_instances) == 4, "the caller's samples were changed"


def test_classes_and_channels_are_read_off_the_student():
    for name in DETECTORS:
        model = build(name)
        assert model.teachers['teacher'].neck.num_classes == NUM_CLASSES, name
        feats = model.extract_feat(torch.zeros(2, 3, 64, 64))
        assert tuple(x.shape[1] for x in feats) == model.teachers['teacher'].neck.in_channels, name


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(distill_coef=-1.0), r'model\.distill_coef is -1\.0; accepted: a number >= 0'),
        (dict(teacher_loss_weight=-1), r'model\.teacher_loss_weight is -1; accepted'),
        (
            dict(distill_loss=dict(type='AdaptiveDistillLoss')),
            r"distill_loss is .*'AdaptiveDistillLoss'}; accepted: .*JSDistanceLoss, .*or a FeatureLoss",
        ),
        (dict(distill_loss=dict(dim='pixel')), r"distill_loss\.dim is 'pixel'; accepted: spatial"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build('retinanet', **kwargs)


def test_a_key_of_the_detector_is_sent_to_the_student():
    """As `model=dict(bbox_head=…)` below a distilled config and `--cfg-options` give it."""
    with pytest.raises(TypeError) as raised:
        build('retinanet', bbox_head=dict(num_classes=2))
    assert re.search(
        r'bbox_head is not a setting of SSSDDistiller; .* is written model\.student\.bbox_head\. '
        r'Accepted: student, teacher, adapter, distill_loss, .*, init_cfg$',
        user_error(raised.value),
    )


@pytest.mark.parametrize('part', ['teacher', 'adapter'])
def test_channels_that_disagree_are_named_before_training(part):
    with pytest.raises(
        ConfigError,
        match=rf'model\.{part}\.in_channels is \[16\], but .* \[32, 32, 32, 32, 32\] channels',
    ):
        build('retinanet', **{part: dict(in_channels=16)})


def test_a_student_that_does_not_run_on_a_cpu_needs_its_channels_given(monkeypatch):
    cls = type(build('retinanet').student)

    def fail(self, batch_inputs):
        raise RuntimeError('carafe_forward_impl: implementation for device cpu not found')

    monkeypatch.setattr(cls, 'extract_feat', fail)
    with pytest.raises(
        ConfigError, match=r'device cpu not found\).* give SSSDDistiller the channels'
    ):
        build('retinanet')
    given = dict(in_channels=[32] * 5)
    assert (
        build('retinanet', teacher=given, adapter=given).teachers['teacher'].neck.in_channels
        == (32,) * 5
    )
    given = dict(in_channels=[32] * 4)
    model = build('retinanet', teacher=given, adapter=given, economy=True)
    assert model.teachers['teacher'].start_level == 1


@pytest.mark.parametrize('part', ['backbone', 'neck', 'bbox_head'])
def test_a_student_without_a_part_is_named(part):
    student = stock_config('retinanet')
    student.pop(part)
    with pytest.raises(ConfigError, match=r'model\.student \(RetinaNet\) cannot be built: .*'):
        MODELS.build(dict(type='SSSDDistiller', student=student))


def test_three_features_for_an_image_as_tridentnet_has_them():
    model = build('retinanet')
    data = demo_batch(model)
    extract = model.student.extract_feat
    model.student.extract_feat = lambda x: tuple(torch.cat([f] * 3) for f in extract(x))
    tripled = [*data['data_samples'] * 3]
    loss = model.student.loss
    model.student.loss = lambda inputs, samples: loss(inputs, fresh_samples(tripled))
    total, logged = model.parse_losses(losses_of(model, **data))
    assert total.isfinite()
    assert 'teacher.loss_cls' in logged


def test_students_that_cannot_be_distilled_are_refused():
    no_detector = dict(type='ResNet', depth=18)
    with pytest.raises(
        ConfigError, match=r"model\.student\.type is 'ResNet'.* accepted: a detector"
    ):
        MODELS.build(dict(type='SSSDDistiller', student=no_detector))
    for kind, reason in (
        ('SoftTeacher', 'trains two detectors on mixed batches'),
        ('Detectron2Wrapper', 'wraps a detectron2 model'),
        ('NoSuchDetector', 'no package has registered'),
        ('QDTrack', 'is not a detector.* Trackers'),
    ):
        with pytest.raises(ConfigError, match=rf"model\.student\.type is '{kind}', which {reason}"):
            MODELS.build(dict(type='SSSDDistiller', student=dict(type=kind)))
    reads_texts = dict(type='GLIP', language_model=dict(type='BertModel'))
    with pytest.raises(ConfigError, match='also reads text; accepted: detectors that take images'):
        MODELS.build(dict(type='SSSDDistiller', student=reads_texts))


def test_an_rpn_takes_all_classes_for_one():
    student = stock_config('faster_rcnn')
    student.type = 'RPN'
    student.pop('roi_head')
    model = MODELS.build(dict(type='SSSDDistiller', student=student)).train()
    assert model.teachers['teacher'].neck.num_classes == 1
    data = demo_batch(model)
    (feats, inputs) = model.extract_feat(data['inputs']), data['inputs']
    expected = model.teachers['teacher'].neck(feats, inputs, data['data_samples'])
    for sample in data['data_samples']:
        sample.gt_instances.labels[:] = 0
    for x, y in zip(
        model.teachers['teacher'].neck(feats, inputs, data['data_samples']), expected, strict=True
    ):
        assert torch.equal(x, y)


def test_any_head_that_proposes_boxes_has_no_classes_to_count():
    """As guided anchoring's, and one-stage heads as RPN heads."""
    student = stock_config('faster_rcnn')
    head = {**stock_config('fcos').bbox_head, 'num_classes': 1}
    student.rpn_head = {**head, 'in_channels': student.rpn_head.in_channels}
    model = MODELS.build(dict(type='SSSDDistiller', student=student))
    assert model.count_classes() == NUM_CLASSES


@pytest.mark.parametrize('dropped', [[0], [0, 1, 2]])
def test_masks_are_left_out_with_their_boxes(dropped):
    model = build('mask_rcnn', teacher=dict(use_masks=True))
    data = demo_batch(model, with_mask=True)
    whole = data['data_samples'][0].gt_instances
    kept = [i for i in range(3) if i not in dropped]
    whole.bboxes[dropped] = 0
    (sample, _) = model._without_degenerate_boxes(data['data_samples'])
    masks = sample.gt_instances.masks
    assert len(sample.gt_instances) == len(masks) == len(kept)
    assert (masks.to_ndarray() == whole.masks.to_ndarray()[kept]).all()
    total, _ = model.parse_losses(losses_of(model, **data))
    assert total.isfinite()


@pytest.mark.parametrize('name', ['retinanet', 'fcos'])  # mmcv's CPU NMS wants float32: no R-CNN
def test_bfloat16_autocast_keeps_the_losses_finite_and_close(name):
    model = build(name)
    data = demo_batch(model)
    exact = flat(losses_of(model, **copy.deepcopy(data)))
    with torch.autocast('cpu', torch.bfloat16):
        rough = flat(losses_of(model, **data))
    assert rough['loss_distill'].dtype == torch.float32
    for key, value in exact.items():
        torch.testing.assert_close(rough[key].float(), value, rtol=0.05, atol=0.02, msg=key)
    sum(x.sum() for k, x in rough.items() if 'loss' in k).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
