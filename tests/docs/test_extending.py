"""The extensions in docs/extending.md, taken from the page as a user would take them."""

import copy

import pytest
import torch
from mmdet.models.losses import KnowledgeDistillationKLDivLoss
from mmdet.registry import MODELS

from mmdet_sssd.models import probe

from ..distillers import ADL, SSIM, build, losses_of, pretrained
from ..stock_detectors import CONFIGS, demo_batch, stock_config

pytestmark = pytest.mark.usefixtures('extensions')


def distiller(name, teacher, **terms):
    return build(name, type='Distiller', teachers=dict(it=teacher), terms=terms)


def assert_equal_with_gradients(loss, expected, x):
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(y, x)[0] for y in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


def train(model, data, steps):
    """Train on one batch; gives the losses of each step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    logged = []
    for _ in range(steps):
        losses = losses_of(model, data)
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        logged.append(losses)
    return logged


def test_channel_wise_distillation_is_the_paper_s():
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    expected = 0.0
    for image in range(2):
        for channel in range(3):
            p = (t[image, channel] / 4).flatten().softmax(0)
            q = (x[image, channel] / 4).flatten().softmax(0)
            expected += 16 * sum(a * (a / b).log() for a, b in zip(p, q, strict=True)) / 6
    loss = MODELS.build(dict(type='ChannelWiseLoss'))
    assert_equal_with_gradients(loss([x], [t]), expected, x)
    assert loss([x], [x]) == 0


def test_localisation_distillation_is_mmdet_s_loss_weighed(monkeypatch):
    monkeypatch.setitem(CONFIGS, 'gfl', 'gfl/gfl_r50_fpn_1x_coco.py')
    term = dict(type='LocalisationTerm', distill_coef=0.5)
    model = distiller('gfl', pretrained(stock_config('gfl')), ld=term)
    data = demo_batch(model)
    student, teacher = model.student, model.teachers['it'].detector
    _, mine = student.bbox_head(student.extract_feat(data['inputs']))
    scores, theirs = teacher.bbox_head(teacher.extract_feat(data['inputs']))
    stock = KnowledgeDistillationKLDivLoss(reduction='none', T=10)
    total = count = 0.0
    for x, t, score in zip(mine, theirs, scores, strict=True):
        x, t = (y.permute(0, 2, 3, 1).reshape(-1, 17) for y in (x, t))
        sides = 17 * stock(x, t).view(-1, 4).mean(1)  # mmdet's is a mean over the bins
        weight = score.permute(0, 2, 3, 1).reshape(len(sides), -1).sigmoid().amax(1)
        total, count = total + (weight * sides).sum(), count + weight.sum()
    expected = 0.5 * total / max(count, 1)
    weight = student.neck.fpn_convs[0].conv.weight
    assert_equal_with_gradients(losses_of(model, data)['loss_ld'], expected, weight)


def test_a_mean_teacher_is_the_average_under_the_existing_terms():
    model = distiller('retinanet', dict(type='MeanTeacher', momentum=0.4), ssim=SSIM, adl=ADL)
    data, key = demo_batch(model), 'neck.fpn_convs.0.conv.weight'
    weights = []
    for _ in range(3):
        weights.append(model.student.state_dict()[key].clone())
        train(model, data, steps=1)
    expected = weights[0]
    for share, weight in ((0.5, weights[1]), (0.4, weights[2])):  # the whole, half, 0.4
        expected = (1 - share) * expected + share * weight
    torch.testing.assert_close(model.teachers['it'].detector.state_dict()[key], expected)
    losses = losses_of(model, data)
    assert {'loss_ssim', 'loss_adl'} <= losses.keys()
    assert losses['loss_ssim'] > 0


def test_a_mean_teacher_resumes_and_gets_no_gradient():
    model = distiller('retinanet', dict(type='MeanTeacher'), ssim=SSIM)
    data = demo_batch(model)
    train(model, data, steps=2)
    again = distiller('retinanet', dict(type='MeanTeacher'), ssim=SSIM)
    again.load_state_dict(model.state_dict())
    for a, b in zip(train(model, data, 2), train(again, data, 2), strict=True):
        assert all(torch.equal(x, b[key]) for key, x in a.items() if key.startswith('loss_ssim'))
    assert all(p.grad is None for p in model.teachers.parameters())


FROZEN = dict(type='FrozenBackbone', backbone=dict(type='ResNet', depth=18, out_indices=(1, 2, 3)))


def test_a_frozen_backbone_keeps_its_weights_and_stays_out_of_checkpoints():
    model = distiller('retinanet', FROZEN, ssim=SSIM)
    data = demo_batch(model)
    backbone = model.teachers['it'].backbone
    before = copy.deepcopy(backbone.state_dict())
    train(model, data, steps=2)
    assert {key.split('.')[0] for key in model.state_dict()} == {'student', 'terms'}
    assert all(torch.equal(x, before[key]) for key, x in backbone.state_dict().items())
    assert not any(x.training for x in backbone.modules())
    outputs = model.teachers['it'](model.student, probe(model.student), data['inputs'], None)
    levels = [*backbone(data['inputs']), *outputs.feats[3:]]
    assert all(torch.equal(x, y) for x, y in zip(outputs.feats, levels, strict=True))
    sizes = [x.shape[2:] for x in model.student.extract_feat(data['inputs'])]
    assert [x.shape[2:] for x in outputs.feats] == sizes
