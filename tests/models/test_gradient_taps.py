"""What each user sends into the features, against autograd on features that are leaves."""

import copy

import pytest
import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS

from mmdet_sssd.models.distiller import GradientTaps

from ..distillers import ADL, SSIM, assert_equal, backward, losses_of, pretrained
from ..stock_detectors import demo_batch, stock_config
from . import test_semi_distiller as semi

TERMS = dict(ssim={**SSIM, 'distill_coef': 5}, adl=ADL)
CASES = {
    'retinanet': {},
    'faster_rcnn': {},
    'start_level': dict(start_level=1),
    'terms': dict(
        teachers=dict(large=pretrained(stock_config('retinanet'))),
        terms={name: {**term, 'teacher': 'large'} for name, term in TERMS.items()},
    ),
    'triple': {},
    'semi': {},
}


@MODELS.register_module()
class TripleRetinaNet(RetinaNet):
    """Makes three features of each image, as TridentNet does in training."""

    def extract_feat(self, batch_inputs):
        return tuple(torch.cat([x, 2 * x, 3 * x]) for x in super().extract_feat(batch_inputs))

    def loss(self, batch_inputs, batch_data_samples):
        samples = [copy.deepcopy(x) for _ in range(3) for x in batch_data_samples]
        return super().loss(batch_inputs, samples)


def build(case):
    """A distiller whose terms are measured, and a batch."""
    if case == 'semi':
        model = semi.build(terms=dict(adl=ADL, ssim=SSIM))
        semi.set_threshold(model)
        data = semi.prepared(model, sup=(0, 1), unsup=(1, 2))
    else:
        student = stock_config(case if case == 'faster_rcnn' else 'retinanet')
        if case == 'triple':
            student.type = 'TripleRetinaNet'
        torch.manual_seed(0)
        config = dict(type='SSSDDistiller', student=student, **CASES[case])
        model = MODELS.build(copy.deepcopy(config)).train()  # initialised, losses would be too even
        data = demo_batch(model)
    for term in model.terms.values():
        term.is_measured = True
    return model, data


def unmeasured(model):
    model = copy.deepcopy(model)
    for term in model.terms.values():
        term.is_measured = False
    return model


def step(model, data):
    """What a step logs, and its gradients by parameter."""
    model.zero_grad()
    logged = backward(model, losses_of(model, data))
    return logged, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def expected_squares(model, data):
    """The squared norms of each user's gradient by level, over the branches of the batch.

    Features are leaves here, so that nothing comes to one level by way of another.
    """
    model, pyramids = unmeasured(model), []
    extract = model.student.extract_feat

    def leaves(inputs):
        pyramids.append(tuple(x.detach().requires_grad_() for x in extract(inputs)))
        return pyramids[-1]

    model.student.extract_feat = leaves
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
            options = dict(retain_graph=True, materialize_grads=True, allow_unused=True)
            grads = torch.autograd.grad(loss, feats, **options)
            squares[user] += torch.stack([x.square().sum() for x in grads])
    return squares


@pytest.mark.parametrize('case', CASES)
def test_norms_are_autograd_s_and_the_step_stays_the_same(case):
    model, data = build(case)
    plain, squares = unmeasured(model), expected_squares(model, data)
    logged, grads = step(model, data)
    taps = model.gradient_taps
    for user, expected in squares.items():
        torch.testing.assert_close(taps.squares[user], expected, rtol=1e-4, atol=1e-12, msg=user)
    for name in model.terms:
        levels = squares[f'terms.{name}'] != 0
        pulls = [name != 'adl'] * len(levels)
        pulls[0] &= case != 'start_level'
        pulls[-1] &= name != 'distill' or case == 'faster_rcnn'  # one pixel, normalised
        assert levels.tolist() == pulls
        norms = (squares[user][levels].sum().sqrt() for user in (f'terms.{name}', 'student'))
        found = taps.norms(f'terms.{name}', 'student')
        assert found == pytest.approx([x.item() for x in norms], rel=1e-4)
    plain_logged, plain_grads = step(plain, data)
    assert not plain.gradient_taps.squares
    assert logged == plain_logged
    assert sum(x is not None for x in grads.values()) > 50
    assert_equal(grads, plain_grads)
    assert not taps.sum_of_later, 'gradients are kept'


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
    plain = unmeasured(model)
    with torch.autocast('cpu', torch.bfloat16):
        squares = expected_squares(model, data)
        grads, plain_grads = (step(x, data)[1] for x in (model, plain))
    for user, expected in squares.items():
        measured = model.gradient_taps.squares[user]
        torch.testing.assert_close(measured, expected, rtol=0.05, atol=1e-12, msg=user)
    assert_equal(grads, plain_grads)


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
