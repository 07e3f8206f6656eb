"""What each user sends into the features, against autograd on features that are leaves."""

import copy

import pytest
import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS

from mmdet_sssd.models.distiller import GradientTaps
from mmdet_sssd.models.replay import fresh_samples

from ..stock_detectors import demo_batch, stock_config
from . import test_semi_distiller as semi

LARGE = dict(
    large=dict(type='PretrainedTeacher', config=stock_config('retinanet'), checkpoint=None)
)
SSIM = dict(type='FeatureTerm', teacher='large', distill_loss=dict(type='SSIMLoss'), distill_coef=5)
ADL = dict(type='LogitTerm', teacher='large')
CASES = {
    'retinanet': {},
    'faster_rcnn': {},
    'start_level': dict(start_level=1),
    'terms': dict(teachers=LARGE, terms=dict(ssim=SSIM, adl=ADL)),
    'triple': {},
    'semi': {},
}


@MODELS.register_module()
class TripleRetinaNet(RetinaNet):
    """Makes three features of each image, as TridentNet does in training."""

    def extract_feat(self, batch_inputs):
        return tuple(torch.cat([x, 2 * x, 3 * x]) for x in super().extract_feat(batch_inputs))

    def loss(self, batch_inputs, batch_data_samples):
        return super().loss(batch_inputs, fresh_samples([*batch_data_samples * 3]))


def build(case):
    """A distiller whose terms are measured, and a batch."""
    torch.manual_seed(0)
    if case == 'semi':
        model = semi.build(terms={**semi.ADL, **semi.SSIM})
        semi.set_threshold(model)
        data = semi.prepared(model, sup=(0, 1), unsup=(1, 2))
    else:
        student = stock_config(case if case == 'faster_rcnn' else 'retinanet')
        if case == 'triple':
            student.type = 'TripleRetinaNet'
        config = dict(type='SSSDDistiller', student=student, **CASES[case])
        model = MODELS.build(copy.deepcopy(config)).train()
        data = demo_batch(model)
    for term in model.terms.values():
        term.is_measured = True
    return model, data


def losses_of(model, data):
    torch.manual_seed(1)
    data = copy.deepcopy(data)
    return model(data['inputs'], data['data_samples'], mode='loss')


def step(model, data):
    """The losses of a step and its gradients by parameter."""
    losses = losses_of(model, data)
    total, logged = model.parse_losses(losses)
    model.zero_grad()
    total.backward()
    return logged, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def expected_squares(model, data):
    """The squared norms of each user's gradient by level, over the branches of the batch.

    Features are leaves here, so that nothing comes to one level by way of another.
    """
    model, pyramids = copy.deepcopy(model), []
    extract = model.student.extract_feat

    def leaves(inputs):
        pyramids.append(tuple(x.detach().requires_grad_() for x in extract(inputs)))
        return pyramids[-1]

    model.student.extract_feat = leaves
    for term in model.terms.values():
        term.is_measured = False
    sums = dict.fromkeys(['student', *(f'terms.{name}' for name in model.terms)], 0)
    for key, value in losses_of(model, data).items():
        name = key.removeprefix('unsup.')
        if 'loss' in name and not name.startswith('teacher.'):
            term = f'terms.{name.removeprefix("loss_")}'
            # what a term on logits sends comes through the head
            user = term if term in sums and term != 'terms.adl' else 'student'
            sums[user] += sum(x.sum() for x in value) if isinstance(value, list) else value.sum()
    squares = {}
    for user, loss in sums.items():
        squares[user] = torch.zeros(len(pyramids[0]))
        for feats in pyramids if torch.is_tensor(loss) else ():
            grads = torch.autograd.grad(loss, feats, retain_graph=True, materialize_grads=True,
                                        allow_unused=True)  # fmt: skip
            squares[user] += torch.stack([x.square().sum() for x in grads])
    return squares


@pytest.mark.parametrize('case', CASES)
def test_norms_are_autograd_s_and_a_step_stays_the_same_to_the_bit(case):
    model, data = build(case)
    plain = copy.deepcopy(model)
    for term in plain.terms.values():
        term.is_measured = False
    squares = expected_squares(model, data)
    logged, grads = step(model, data)
    for user, expected in squares.items():
        measured = model.gradient_taps.squares[user]
        torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-12, msg=user)
    for name in model.terms:
        levels = squares[f'terms.{name}'] != 0
        pulls = [name != 'adl'] * len(levels)
        pulls[0] &= case != 'start_level'
        pulls[-1] &= name != 'distill' or case == 'faster_rcnn'  # one pixel, normalised
        assert levels.tolist() == pulls
        norms = (squares[user][levels].sum().sqrt() for user in (f'terms.{name}', 'student'))
        found = model.gradient_taps.norms(f'terms.{name}', 'student')
        assert found == pytest.approx([x.item() for x in norms], rel=1e-4)
    plain_logged, plain_grads = step(plain, data)
    assert not plain.gradient_taps.squares
    assert logged == plain_logged
    assert sum(x is not None for x in grads.values()) > 50
    for name, grad in plain_grads.items():
        assert torch.equal(grads[name], grad), name
    assert not model.gradient_taps.later, 'gradients are kept'


@pytest.mark.parametrize('still', ['detached', 'at rest', 'not asked'])
def test_nothing_is_measured_where_no_term_pulls(still):
    model, data = build('retinanet')
    term = model.terms['distill']
    term.detach_student = still == 'detached'
    model.teachers['teacher'].active = still != 'at rest'
    term.is_measured = still != 'not asked'
    step(model, data)
    assert model.gradient_taps.norms('terms.distill', 'student') is None


def test_mixed_precision_is_measured_and_left_as_it_is():
    model, data = build('retinanet')
    plain = copy.deepcopy(model)
    plain.terms['distill'].is_measured = False
    with torch.autocast('cpu', torch.bfloat16):
        squares = expected_squares(model, data)
        _, grads = step(model, data)
        _, plain_grads = step(plain, data)
    for user, expected in squares.items():
        measured = model.gradient_taps.squares[user]
        torch.testing.assert_close(measured, expected, rtol=0.05, atol=1e-12, msg=user)
    for name, grad in plain_grads.items():
        assert torch.equal(grads[name], grad), name


def test_squares_of_half_precision_do_not_vanish():
    taps, feats = GradientTaps(), (torch.ones(1, 1, 8, 8, dtype=torch.float16),)
    feats[0].requires_grad_()
    head = taps.tap('head', feats)
    term = taps.tap('term', head)
    (1e-4 * head[0].float() + 2e-4 * term[0].float()).sum().backward()
    assert taps.norms('term', 'head') == pytest.approx((1.6e-3, 8e-4), rel=1e-2)


def test_a_gradient_that_is_not_finite_shows():
    taps, feats = GradientTaps(), (torch.ones(1, 1, 1, 1, requires_grad=True),) * 2
    head = taps.tap('head', feats)
    term = taps.tap('term', head)
    (head[0] + head[1] + term[0] + torch.nan * term[1]).sum().backward()
    assert not all(x < float('inf') for x in taps.norms('term', 'head'))
