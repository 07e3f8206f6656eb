"""The semi-supervised distiller against slow restatements."""

from collections import Counter

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmdet_sssd import ConfigError
from mmdet_sssd.models import AdaptiveDistillLoss
from mmdet_sssd.models.replay import DetectorOutputs

from .. import distillers
from ..distillers import assert_equal, backward, pretrained, without_gradient
from ..stock_detectors import NUM_CLASSES, stock_config

SIZES = [[3, 96, 128], [3, 128, 90], [3, 64, 64]]
LOW = 0.2  # anchors of an IoU from here to 0.5 are ignored
ADL, SSIM = dict(adl=distillers.ADL), dict(ssim=distillers.SSIM)


def build(name='retinanet', terms=ADL, kind='SemiDistiller'):
    """A student, and a teacher of the same kind that is surer of some images than of others."""
    student, teacher = stock_config(name), stock_config(name)
    student.backbone.norm_eval = True  # with statistics of the batch, images are not independent
    (teacher.test_cfg.rcnn if name == 'faster_rcnn' else teacher.test_cfg).score_thr = 0.0
    teachers = dict(large=pretrained(teacher))
    torch.manual_seed(0)
    # without init_weights, which would make the teacher about as sure of one box as of another
    model = MODELS.build(dict(type=kind, student=student, teachers=teachers, terms=terms))
    make_unsure(model.teachers['large'].detector)
    return model.train()


def make_unsure(detector):
    """Give a random detector scores that differ and are neither all 0 nor all 1."""
    if hasattr(detector, 'roi_head'):
        torch.nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight)
        return
    head = detector.bbox_head
    names = ('retina_cls', 'atss_cls', 'conv_cls')
    (layer,) = (getattr(head, name) for name in names if hasattr(head, name))
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        logits = head(detector.extract_feat(torch.randn(2, 3, 128, 128)))[0]
        layer.weight /= max(x.abs().max() for x in logits) / 3


def batch(sup=(), unsup=()):
    """Images of these indices, as a loader gives them: by branch, with None for those of others."""
    data = demo_mm_inputs(3, SIZES, num_items=[3, 1, 2], num_classes=NUM_CLASSES)
    indices = [('sup', i) for i in sup] + [('unsup', i) for i in unsup]
    return {
        key: {
            branch: [items[i] if b == branch else None for b, i in indices]
            for branch in ('sup', 'unsup')
        }
        for key, items in data.items()
    }


def prepared(model, **indices):
    return model.data_preprocessor(batch(**indices), True)


def unlabelled_losses(model):
    data = prepared(model, unsup=(0, 1, 2))
    return model(**data, mode='loss'), data


@torch.no_grad()
def teachers_boxes(model, inputs, samples):
    """What the teacher predicts, in the pixels of the batch's tensor."""
    samples = [sample.clone() for sample in samples]
    results = model.teachers['large'].detector.predict(inputs, samples, rescale=False)
    return [result.pred_instances for result in results]


def set_threshold(model, surest_only=True):
    """Let the image that the teacher is surest of have boxes, and others have none."""
    data = prepared(model, unsup=(0, 1, 2))
    found = teachers_boxes(model, data['inputs']['unsup'], data['data_samples']['unsup'])
    best = sorted(x.scores.max().item() for x in found)
    low, high = best[-2:] if surest_only else best[:2]
    assert low < high
    model.pseudo_score_thr = (low + high) / 2


def confident(found, threshold):
    width, height = (found.bboxes[:, 2:] - found.bboxes[:, :2]).unbind(1)
    keep = (found.scores >= threshold) & (width >= 1) & (height >= 1)
    return InstanceData(bboxes=found.bboxes[keep], labels=found.labels[keep])


def total(losses):
    return sum(sum(x) if isinstance(x, list) else x for x in losses)


def restated_student_loss(model, inputs, samples, truth):
    """The student's own losses on the images with boxes."""
    has_boxes = [i for i, x in enumerate(truth) if len(x)]
    labelled = [samples[i].clone() for i in has_boxes]
    for sample, i in zip(labelled, has_boxes, strict=True):
        sample.gt_instances = truth[i]
    return model.student.loss(inputs[has_boxes], labelled)


def restated_adl(model, inputs, samples, truth):
    """ADL over all images: no padding, and no anchor between RetinaNet's two thresholds."""
    student, teacher = model.student, model.teachers['large'].detector
    ours, theirs, counts = [], [], []
    for image, sample, instances in zip(inputs, samples, truth, strict=True):
        scores, goals = (
            detector.bbox_head(detector.extract_feat(image[None]))[0]
            for detector in (student, teacher)
        )
        sizes = [x.shape[2:] for x in scores]
        anchors, valid = student.bbox_head.get_anchors(sizes, [sample.metainfo], image.device)
        anchors, valid = torch.cat(anchors[0]), torch.cat(valid[0])
        if len(instances):
            overlaps = bbox_overlaps(instances.bboxes, anchors)
            nearest = (overlaps == overlaps.max(1, keepdim=True).values).any(0)
            best = overlaps.max(0).values
            ignored = (best >= LOW) & (best < 0.5) & ~nearest
            assert (valid & ignored).sum() > 10
            valid &= ~ignored
        counts.append(valid)
        for logits, levels in ((ours, scores), (theirs, goals)):
            logits.append(
                torch.cat([x[0].permute(1, 2, 0).reshape(-1, NUM_CLASSES) for x in levels])
            )
    return AdaptiveDistillLoss()(
        *(torch.cat(x) for x in (ours, theirs)), torch.cat(counts)[:, None]
    )


@pytest.mark.parametrize('surest_only', [True, False])
def test_unlabelled_losses_are_those_of_the_confident_boxes_and_adl_of_all(surest_only):
    model = build()
    model.student.bbox_head.assigner.neg_iou_thr = LOW  # at 0.4 no anchor is ignored
    set_threshold(model, surest_only)
    losses, data = unlabelled_losses(model)
    inputs, samples = data['inputs']['unsup'], data['data_samples']['unsup']
    found = teachers_boxes(model, inputs, samples)
    truth = [confident(x, model.pseudo_score_thr) for x in found]
    counts = [len(x) for x in truth]
    assert sum(map(bool, counts)) == (1 if surest_only else 2)
    expected = restated_student_loss(model, inputs, samples, truth)
    for name, value in expected.items():
        torch.testing.assert_close(total(losses[f'unsup.{name}']), total(value))
    adl = restated_adl(model, inputs, samples, truth)
    torch.testing.assert_close(losses['unsup.loss_adl'], adl, rtol=1e-4, atol=1e-6)
    assert losses['unsup.pseudo_boxes'].item() == pytest.approx(sum(counts) / 3)
    assert set(losses) == {f'unsup.{x}' for x in (*expected, 'loss_adl', 'pseudo_boxes')}


@pytest.mark.parametrize(
    ('name', 'images'),
    [
        *((name, x) for name in ('retinanet', 'faster_rcnn') for x in ('none', 'some', 'all')),
        ('atss', 'some'),
        ('fcos', 'some'),
    ],
)
def test_losses_and_gradients_whatever_images_have_boxes(name, images):
    terms = SSIM if name == 'faster_rcnn' else {**ADL, **SSIM}
    model = build(name, terms)
    if images == 'some':
        set_threshold(model)
    else:
        model.pseudo_score_thr = 1.0 if images == 'none' else 0.0
    calls = Counter()
    for part in (model.student, model.teachers['large'].detector):
        for x in ('backbone', 'bbox_head', 'rpn_head'):
            if hasattr(part, x):
                key = part is model.student, x
                getattr(part, x).register_forward_hook(lambda *_, key=key: calls.update([key]))
    losses, _ = unlabelled_losses(model)
    assert [*calls.values()] == [1] * 4  # each detector sees each image once
    terms_losses = {f'unsup.loss_{x}' for x in terms}
    own = {k: x for k, x in losses.items() if 'loss' in k and k not in terms_losses}
    if images == 'none':
        assert all(total([x]) == 0 for x in own.values())
        assert losses['unsup.pseudo_boxes'] == 0
    else:
        assert total(own.values()) > 0
    assert all(losses[x] > 0 for x in terms_losses)
    assert all(value.isfinite() for value in backward(model, losses).values())
    assert without_gradient(model) == []


def test_infinite_boxes_of_a_teacher_label_nothing(monkeypatch):
    model = build(terms={})
    box = torch.tensor([[8.0, 8.0, float('inf'), 60.0]])
    found = InstanceData(bboxes=box, labels=torch.tensor([0]), scores=torch.tensor([0.9]))
    predicted = DetectorOutputs([]), [found] * 3
    monkeypatch.setattr(model.teachers['large'], 'predict', lambda *_: predicted)
    losses, _ = unlabelled_losses(model)
    assert losses['unsup.pseudo_boxes'] == 0
    assert total(losses.values()) == 0


def test_mixed_precision_labels_as_full_precision_does():
    model = build()
    set_threshold(model)
    expected, _ = unlabelled_losses(model)
    with torch.autocast('cpu', torch.bfloat16):
        losses, _ = unlabelled_losses(model)
    assert losses['unsup.pseudo_boxes'] > 0
    for key, value in losses.items():  # rounding moves an object to another level
        torch.testing.assert_close(total([value]), total([expected[key]]), rtol=0.05, atol=1e-3)


def test_a_batch_is_the_sum_of_its_branches_and_may_lack_one():
    model = build()
    torch.manual_seed(0)
    set_threshold(model)
    both = model(**prepared(model, sup=(0, 1), unsup=(2,)), mode='loss')
    alone = [
        model(**prepared(model, **x), mode='loss') for x in (dict(sup=(0, 1)), dict(unsup=(2,)))
    ]
    assert list(both) == [key for losses in alone for key in losses]
    assert {'loss_cls', 'loss_bbox', 'loss_adl', 'unsup.loss_cls'} < set(both)
    for key, value in (alone[0] | alone[1]).items():
        torch.testing.assert_close(total([both[key]]), total([value]))


@pytest.mark.parametrize('missing', ['sup', 'unsup'])
def test_of_another_process_s_branch_only_losses_are_logged(missing, monkeypatch):
    model = build(terms={**ADL, **SSIM})
    given = dict(unsup=(0, 1, 2)) if missing == 'sup' else dict(sup=(0, 1, 2))
    expected = model(**prepared(model, **given), mode='loss')
    monkeypatch.setattr(type(model), '_branches_anywhere', lambda *_: ['sup', 'unsup'])
    losses = model(**prepared(model, **given), mode='loss')
    others = losses.keys() - expected.keys()
    assert {x.removeprefix('unsup.') for x in others} == {
        x.removeprefix('unsup.') for x in expected if 'loss' in x
    }
    assert sum(total([losses[key]]) for key in others) == 0


@pytest.mark.parametrize('terms', [ADL, SSIM])
def test_a_teacher_that_has_stopped_labels_nothing(terms):
    model = build(terms=terms)
    model.teachers['large'].active = False
    data = prepared(model, sup=(0, 1), unsup=(2,))
    images, samples = data['inputs']['sup'], data['data_samples']['sup']
    expected = model.student.loss(images, [x.clone() for x in samples])
    assert_equal(model(**data, mode='loss'), expected)
    left = model(**prepared(model, unsup=(0, 1, 2)), mode='loss')
    assert left.keys() == expected.keys()
    assert total(left.values()) == 0


def test_processes_prepare_both_branches_whatever_their_batches_have(monkeypatch):
    """Batch augmentations wait for one another; an image's own result does not change."""
    model = build()
    expected = prepared(model, unsup=(0, 1))
    calls = []
    inner = type(model.student.data_preprocessor)
    forward = inner.forward
    monkeypatch.setattr(inner, 'forward', lambda *x: calls.append(1) or forward(*x))
    monkeypatch.setattr('mmdet_sssd.models.semi_distiller.get_world_size', lambda: 2)
    found = prepared(model, unsup=(0, 1))
    assert len(calls) == 2
    assert found['inputs'].keys() == {'unsup'}
    assert torch.equal(found['inputs']['unsup'], expected['inputs']['unsup'])
    prepared(model, sup=(0,), unsup=(1,))
    assert len(calls) == 4


def test_labelled_images_train_as_in_a_distiller():
    model, plain = build(), build(kind='Distiller')
    data = prepared(model, sup=(0, 1, 2))
    samples = data['data_samples']['sup']
    expected = plain(inputs=data['inputs']['sup'], data_samples=samples, mode='loss')
    assert_equal(model(**prepared(model, sup=(0, 1, 2)), mode='loss'), expected)


def test_labels_of_unlabelled_images_are_not_looked_at():
    model = build()
    model.student.bbox_head.assigner.ignore_iof_thr = 0.5
    set_threshold(model)
    expected, data = unlabelled_losses(model)
    data = prepared(model, unsup=(0, 1, 2))
    for sample in data['data_samples']['unsup']:
        sample.gt_instances = sample.gt_instances[:0]
        sample.ignored_instances = InstanceData(bboxes=torch.tensor([[0.0, 0, 128, 128]]))
    del sample.ignored_instances  # the last one never had any
    assert_equal(model(**data, mode='loss'), expected)


def test_predictions_are_the_student_s_from_plain_batches():
    model = build().eval()
    model.student.test_cfg.score_thr = 0.0
    data = demo_mm_inputs(1, [[3, 64, 64]])
    ours, theirs = (x.test_step(data)[0].pred_instances for x in (model, model.student))
    assert len(ours) > 0
    assert torch.equal(ours.bboxes, theirs.bboxes)


@pytest.mark.parametrize('place', ['student', 'model'])
def test_a_multi_branch_data_preprocessor_is_the_student_s(place):
    student = stock_config('retinanet')
    own = student.pop('data_preprocessor')
    both = dict(type='MultiBranchDataPreprocessor', data_preprocessor=own)
    settings = dict(type='SemiDistiller', teachers=dict(a=pretrained(stock_config('retinanet'))))
    (student if place == 'student' else settings)['data_preprocessor'] = both
    model = distillers.build(student, **settings)
    assert type(model.student.data_preprocessor).__name__ == own.type
    assert model.data_preprocessor.data_preprocessor is model.student.data_preprocessor
    assert model.student.data_preprocessor.mean.flatten().tolist() == pytest.approx(own.mean)


def test_batches_of_other_branches_are_refused():
    preprocess = build().data_preprocessor
    plain = demo_mm_inputs(1, [[3, 64, 64]])
    with pytest.raises(ConfigError, match='has the branches: none'):
        preprocess(plain, True)
    wrong = {key: {'teacher': x['sup']} for key, x in batch(sup=(0,)).items()}
    with pytest.raises(ConfigError, match='the branches: teacher'):
        preprocess(wrong, True)


@pytest.mark.parametrize(
    'name',
    ['rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', 'maskformer/maskformer_r50_ms-16xb1-75e_coco.py'],
)
def test_a_student_that_learns_masks_is_refused(name):
    student = Config.fromstring(f'_base_ = "mmdet::{name}"', '.py').model
    teachers = dict(large=pretrained(stock_config('retinanet')))
    with pytest.raises(ConfigError, match='which learns masks'):
        MODELS.build(dict(type='SemiDistiller', student=student, teachers=teachers))
