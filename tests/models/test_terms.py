import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from mmdet_sssd import ConfigError
from mmdet_sssd.models import (
    AdaptiveDistillLoss,
    DetectorOutputs,
    Distiller,
    JSDistanceLoss,
    SSIMLoss,
)
from mmdet_sssd.models.logit_term import _inside_image
from mmdet_sssd.models.terms import match_levels

from ..stock_detectors import demo_batch, stock_config

DENSE = ('retinanet', 'fcos', 'atss')
SSIM = dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss'))
ADL = dict(type='LogitTerm')


def wider(name: str):
    """The same detector with 48 channels in its levels, where the small one has 32."""
    config = stock_config(name)
    config.neck.out_channels = 48
    for head in (config.get('bbox_head'), config.get('rpn_head')):
        if head:
            head.in_channels = 48
    if 'roi_head' in config:
        config.roi_head.bbox_roi_extractor.out_channels = 48
        config.roi_head.bbox_head.in_channels = 48
    return config


def pretrained(config):
    return dict(type='PretrainedTeacher', config=config, checkpoint=None)


def build(name: str, terms: dict, teacher=None, kind='Distiller', **kwargs) -> Distiller:
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type=kind,
            student=stock_config(name),
            teachers=dict(large=pretrained(teacher or wider(name))),
            terms=terms,
            **kwargs,
        )
    )
    model.init_weights()
    head = getattr(model.teachers['large'].detector, 'bbox_head', nn.Identity())
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.05)  # logits that differ
    return model.train()


def losses_of(model, **data):
    torch.manual_seed(1)
    return model(**copy.deepcopy(data), mode='loss')


@pytest.fixture(params=DENSE)
def dense(request):
    return request.param


def test_a_feature_term_compares_adapted_levels():
    model = build('retinanet', dict(ssim={**SSIM, 'distill_coef': 3.0}))
    data = demo_batch(model)
    losses = losses_of(model, **data)
    teacher = model.teachers['large'].detector
    dissimilarities = []
    for level, x, t in zip(
        model.terms['ssim'].adapter.levels,
        model.student.extract_feat(data['inputs']),
        teacher.extract_feat(data['inputs']),
        strict=True,
    ):
        adapted = torch.einsum('bchw,dc->bdhw', x, level.weight[..., 0, 0])
        adapted = adapted + level.bias[:, None, None]
        dissimilarities.append(SSIMLoss()([adapted], [t]))
    for p, expected in enumerate(dissimilarities):
        torch.testing.assert_close(losses[f'ssim_distance.{p}'], expected.detach())
    expected = 3 * torch.stack(dissimilarities).mean()
    torch.testing.assert_close(losses['loss_ssim'], expected)


def test_js_distance_with_a_pretrained_teacher():
    term = dict(type='FeatureTerm', distill_loss=dict(type='JSDistanceLoss'), normalize=True)
    model = build('retinanet', dict(js=term), stock_config('retinanet'))
    assert not [*model.terms.parameters()]  # same channels: nothing to adapt
    data = demo_batch(model)

    def normed(x):
        variance = x.var((2, 3), unbiased=False, keepdim=True)
        return (x - x.mean((2, 3), keepdim=True)) / (variance + 1e-5).sqrt()

    distances = [
        JSDistanceLoss()([normed(x)], [normed(t)])
        for x, t in zip(
            model.student.extract_feat(data['inputs']),
            model.teachers['large'].detector.extract_feat(data['inputs']),
            strict=True,
        )
    ]
    expected = 10 * torch.stack(distances).mean()  # its default λ
    torch.testing.assert_close(losses_of(model, **data)['loss_js'], expected)


def test_a_teacher_equal_to_the_student_leaves_nothing_to_learn():
    model = build('retinanet', dict(ssim=SSIM), stock_config('retinanet'))
    model.student.eval()  # its BN would normalise by the batch
    model.teachers['large'].detector.load_state_dict(model.student.state_dict())
    losses = losses_of(model, **demo_batch(model))
    assert losses['loss_ssim'].abs() < 1e-6


def adl_by_hand(model, data):
    """Image by image, anchor by anchor: inside its image, and not ignored by the assigner."""
    student, teacher = model.student, model.teachers['large'].detector
    samples = data['data_samples']
    head = student.bbox_head
    mine = head(student.extract_feat(data['inputs']))[0]
    theirs = teacher.bbox_head(teacher.extract_feat(data['inputs']))[0]
    classes = head.num_classes
    z, q = [], []
    for b, sample in enumerate(samples):
        height, width = sample.img_shape
        for (stride, _), x, t in zip(head.prior_generator.strides, mine, theirs, strict=True):
            h, w = x.shape[2:]
            num_anchors = x.shape[1] // classes
            for i in range(h):
                for j in range(w):
                    if i * stride >= height or j * stride >= width:
                        continue
                    for a in range(num_anchors):
                        z.append(x[b, a * classes : (a + 1) * classes, i, j])
                        q.append(t[b, a * classes : (a + 1) * classes, i, j])
    return torch.stack(z), torch.stack(q)


def test_a_logit_term_counts_the_anchors_inside_the_images():
    """FCOS's assigner ignores nothing."""
    model = build('fcos', dict(adl={**ADL, 'distill_coef': 0.5}))
    data = demo_batch(model)
    expected = 0.5 * AdaptiveDistillLoss()(*adl_by_hand(model, data))
    torch.testing.assert_close(losses_of(model, **data)['loss_adl'], expected)


@pytest.mark.parametrize('size', [(320, 320), (96, 416), (800, 1088)])
@pytest.mark.parametrize('part', [1.0, 0.83, 0.4])
def test_padding_agrees_with_mmdet_s_anchor_flags(size, part):
    anchors = MODELS.build(stock_config('retinanet').bbox_head).prior_generator
    strides = [stride for stride, _ in anchors.strides]
    levels = [torch.zeros(1, *(-(-n // s) for n in size), 9, 3) for s in strides]
    shape = tuple(round(n * part) for n in size)
    flags = anchors.valid_flags([x.shape[1:3] for x in levels], shape, device='cpu')
    sample = DetDataSample(metainfo=dict(img_shape=shape))
    for level, expected in zip(levels, flags, strict=True):
        ours = _inside_image(level, torch.zeros(1, 3, *size), [sample])
        assert torch.equal(ours.flatten(), expected)


def test_a_logit_term_leaves_out_ignored_anchors():
    model = build('retinanet', dict(adl=ADL))
    data = demo_batch(model)
    loss = losses_of(model, **data)['loss_adl']

    head = model.student.bbox_head
    feats = model.student.extract_feat(data['inputs'])
    teacher = model.teachers['large'].detector
    sizes = [tuple(x.shape[2:]) for x in feats]
    samples = data['data_samples']
    anchors = head.prior_generator.grid_priors(sizes, device='cpu')
    mine, theirs = head(feats)[0], teacher.bbox_head(teacher.extract_feat(data['inputs']))[0]
    num_ignored, z, q = 0, [], []
    for b, sample in enumerate(samples):
        for p, (x, t) in enumerate(zip(mine, theirs, strict=True)):
            found = head.assigner.assign(
                InstanceData(priors=torch.cat(anchors)), sample.gt_instances
            ).gt_inds.split([len(a) for a in anchors])[p]
            stride = head.prior_generator.strides[p]
            logits = [y[b].permute(1, 2, 0).reshape(-1, head.num_classes) for y in (x, t)]
            rows = torch.arange(len(found)) // head.num_base_priors
            i, j = rows // sizes[p][1], rows % sizes[p][1]
            inside = (i * stride[0] < sample.img_shape[0]) & (j * stride[1] < sample.img_shape[1])
            num_ignored += int((found[inside] == -1).sum())
            z.append(logits[0][inside & (found >= 0)])
            q.append(logits[1][inside & (found >= 0)])
    assert num_ignored > 0
    torch.testing.assert_close(loss, AdaptiveDistillLoss()(torch.cat(z), torch.cat(q)))


def test_one_forward_of_the_student_and_its_losses_are_stock_s(dense):
    torch.manual_seed(3)
    stock = MODELS.build(stock_config(dense)).train()
    model = build(dense, dict(adl=ADL, ssim=SSIM))
    model.student.load_state_dict(stock.state_dict())
    calls = []
    for name in ('backbone', 'neck', 'bbox_head'):
        part = model.student.get_submodule(name)
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    data = demo_batch(stock)
    losses = losses_of(model, **data)
    assert calls == ['backbone', 'neck', 'bbox_head']
    for key, value in losses_of(stock, **data).items():
        for ours, theirs in zip(listed(losses[key]), listed(value), strict=True):
            assert torch.equal(ours, theirs), key
    total, _ = model.parse_losses(losses)
    total.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def listed(value):
    return value if isinstance(value, list) else [value]


def test_a_term_beside_the_implicit_teacher():
    plain = MODELS.build(dict(type='SSSDDistiller', student=stock_config('retinanet')))
    terms = dict(adl={**ADL, 'teacher': 'large'})
    model = build('retinanet', terms, kind='SSSDDistiller')
    missing = model.load_state_dict(plain.state_dict(), strict=True)
    assert not missing.missing_keys
    plain.train()
    data = demo_batch(plain)
    alone, both = losses_of(plain, **data), losses_of(model, **data)
    assert both.keys() - alone.keys() == {'loss_adl'}
    for key, value in alone.items():
        for ours, theirs in zip(listed(both[key]), listed(value), strict=True):
            assert torch.equal(ours, theirs), key


def test_detached_the_student_learns_nothing_from_a_term_and_the_adapter_does():
    model = build('retinanet', dict(ssim=SSIM))
    model.terms['ssim'].detach_student = True
    losses_of(model, **demo_batch(model))['loss_ssim'].backward()
    assert all(p.grad is None for p in model.student.parameters())
    assert all(p.grad.any() for p in model.terms['ssim'].parameters())


def test_a_two_stage_student_learns_a_teacher_s_features():
    model = build('faster_rcnn', dict(ssim=SSIM))
    total, logged = model.parse_losses(losses_of(model, **demo_batch(model)))
    total.backward()
    assert 0 < logged['loss_ssim'] < 1
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def levels(*sizes, channels=4):
    return [torch.zeros(1, channels, size, size) for size in sizes]


def test_a_student_s_three_features_for_an_image_meet_the_teacher_s_one():
    """As TridentNet's in training: those of all images, three times over."""
    mse = dict(type='FeatureTerm', distill_loss=dict(type='NormedMSELoss'))
    term = build('retinanet', dict(mse=mse), stock_config('retinanet')).terms['mse']
    teacher = [torch.randn(2, 32, size, size) for size in (8, 4, 2)]
    student = [torch.randn(6, 32, size, size) for size in (8, 4, 2)]
    term.pairs = [(p, p) for p in range(3)]
    term.adapter = nn.Identity()
    loss = term(DetectorOutputs(student), DetectorOutputs(teacher), None, None)['loss']
    squares = [(x - torch.cat([t, t, t])).square() for x, t in zip(student, teacher, strict=True)]
    expected = torch.cat([x.flatten() for x in squares]).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ('student', 'teacher', 'pairs'),
    [
        ((40, 20, 10), (80, 40, 20, 10, 5), {0: 1, 1: 2, 2: 3}),
        ((40, 40), (40, 40), {0: 0, 1: 1}),  # stacks of an hourglass
        ((80, 40), (40, 20), {0: 0, 1: 0}),
        ((40, 20, 10, 5, 3), (20,), {0: 0, 1: 0, 2: 0}),  # one map of stride 16
        ((40, 20, 10, 5, 3), (23, 23), {0: 1, 1: 1, 2: 1}),  # of stride 14, the deeper one
        ((40, 20), (80, 40, 20, 10, 5, 3), {0: 1, 1: 2}),
    ],
)
def test_a_level_meets_the_teacher_s_nearest_in_size(student, teacher, pairs):
    assert match_levels(levels(*student), levels(*teacher)) == [*pairs.items()]


def test_levels_of_the_user_s_choice():
    sides = levels(40, 20, 10), levels(20, 10)
    assert match_levels(*sides, [None, 0, 0]) == [(1, 0), (2, 0)]
    for wrong in ([0, 0], [0, 0, 2], [None, None, None]):
        with pytest.raises(ConfigError, match=r'levels is .*40×40, 20×20, 10×10, the teacher.s 20'):
            match_levels(*sides, wrong)
    with pytest.raises(ConfigError, match=r"student's are 80×80, the teacher's 10×10"):
        match_levels(levels(80), levels(10))


def test_a_teacher_with_other_strides_is_resized():
    """Each student level, of stride 8 to 128, meets the teacher's of its stride or half of it."""
    teacher = stock_config('retinanet')
    teacher.neck.start_level = 0
    teacher.neck.num_outs = 5
    teacher.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    model = build('retinanet', dict(ssim=SSIM), teacher)
    assert model.terms['ssim'].pairs == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 4)]
    losses = losses_of(model, **demo_batch(model))
    assert 0 < losses['loss_ssim'] < 1


def test_a_teacher_with_other_numbers_of_levels():
    """YOLOX has strides 8 to 32, RetinaNet 8 to 128."""
    model = build('retinanet', dict(ssim=SSIM), stock_config('yolox'))
    losses = losses_of(model, **demo_batch(model))
    logged = {key for key in losses if key.startswith('ssim_distance')}
    assert logged == {f'ssim_distance.{p}' for p in range(4)}
    chosen = {**SSIM, 'levels': [None, 0, 1, 2, None]}
    model = build('retinanet', dict(ssim=chosen), stock_config('yolox'))
    data = demo_batch(model)
    losses = losses_of(model, **data)
    feats = model.student.extract_feat(data['inputs'])
    teacher = model.teachers['large']
    images = teacher.convert(data['inputs'], data['data_samples'])
    target = teacher.detector.extract_feat(images)[1]
    resized = nn.functional.interpolate(target, feats[2].shape[2:], mode='bilinear')
    adapted = model.terms['ssim'].adapter.levels[1](feats[2])
    expected = SSIMLoss()([adapted], [resized]).detach()
    torch.testing.assert_close(losses['ssim_distance.2'], expected)


def classes(number):
    config = stock_config('retinanet')
    config.bbox_head.num_classes = number
    return config


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(terms={}), r'model\.teachers\.large is used by none of model\.terms; add one'),
        (dict(teachers=None), r'model\.teachers is empty; give a teacher'),
        (dict(terms=dict(a=dict(loss=1))), r'model\.terms\.a is .*accepted: a dict with type='),
        (dict(terms=dict(a=3)), r'model\.terms\.a is 3; accepted: a dict with type='),
        (
            dict(terms=dict(a=dict(type='SSIMLoss'))),
            r"model\.terms\.a is {'type': 'SSIMLoss'}; .* type=.*FeatureTerm, .*LogitTerm, .*or a D",
        ),
        (
            dict(terms=dict(a=dict(type='FeatureTerm'))),
            r"model\.terms\.a: missing .*'distill_loss'; FeatureTerm accepts: distill_loss, ",
        ),
        (
            dict(terms=dict(a={**ADL, 'coef': 2})),
            r"unexpected .*'coef'; LogitTerm accepts: distill_loss, distill_coef$",
        ),
        (
            dict(terms=dict(a=dict(type='FeatureTerm', distill_loss=dict(type='SSIM')))),
            r"model\.terms\.a\.distill_loss is {'type': 'SSIM'}; accepted: .*JSDistanceLoss",
        ),
        (
            dict(teachers=dict(large=dict(type='PretrainedTeacher', config='x.py'))),
            r"model\.teachers\.large: missing .*'checkpoint'; .*: config, checkpoint",
        ),
        (
            dict(terms=dict(a={**SSIM, 'distill_coef': -1})),
            r'model\.terms\.a\.distill_coef is -1; accepted: a number >= 0',
        ),
        (
            dict(terms=dict(a=dict(type='FeatureTerm', distill_loss=dict(type='FocalLoss')))),
            r"model\.terms\.a\.distill_loss is .*'FocalLoss'}; accepted: .*SSIMLoss.*, or a F",
        ),
        (
            dict(terms=dict(a=dict(type='LogitTerm', distill_loss=dict(type='SSIMLoss')))),
            r"model\.terms\.a\.distill_loss is .*'SSIMLoss'}; accepted: .*AdaptiveDistillLoss",
        ),
        (
            dict(
                terms=dict(a={**SSIM, 'adapter': dict(type='FeatureAdapter')}),
                teachers=dict(large=pretrained(wider('retinanet'))),
            ),
            r"model\.terms\.a\.adapter\.type is 'FeatureAdapter', .*\[32, .*\[48, .*ChannelAdapter",
        ),
        (
            dict(teachers=dict(large=pretrained(classes(4))), terms=dict(a=ADL)),
            r'model\.terms\.a: the logits of student and teacher differ; .*9, 3\).*9, 4\)',
        ),
        (
            dict(student=stock_config('faster_rcnn'), terms=dict(a=ADL)),
            r'model\.terms\.a: classification logits are compared, but the student has no dense',
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(kwargs, message):
    settings = dict(
        student=stock_config('retinanet'),
        teachers=dict(large=pretrained(stock_config('retinanet'))),
        terms=dict(ssim=SSIM),
    )
    with pytest.raises(ConfigError, match=message):
        MODELS.build(dict(type='Distiller', **(settings | kwargs)))
