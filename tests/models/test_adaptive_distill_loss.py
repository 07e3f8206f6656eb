import math
from importlib import import_module

import pytest
import torch
from torch import Tensor

from mmdet_sssd.models import AdaptiveDistillLoss
from mmdet_sssd.models.losses import soft_positive_count


def logits(*shape: int, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float64 logits of a student and a teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    return scale * student, scale * teacher


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def restated(z: float, t: float, alpha: float, beta: float, gamma: float) -> float:
    """One element's loss, from probabilities, as the paper writes it."""
    p, q = sigmoid(z), sigmoid(t)
    entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    weight = (1 - math.exp(-(divergence + beta * entropy))) ** gamma
    return weight * -(alpha * q * math.log(p) + (1 - alpha) * (1 - q) * math.log(1 - p))


def gradient(z: Tensor, t: Tensor) -> Tensor:
    """Derivative of each element's own loss with respect to its student logit."""
    z = z.clone().requires_grad_()
    AdaptiveDistillLoss()(z, t, avg_factor=1).backward()
    return z.grad


@pytest.mark.parametrize(
    ('alpha', 'beta', 'gamma', 'theta'),
    [(0.5, 1, 2, 1.8), (0.25, 1.5, 1, 1), (1, 0.5, 3.5, 0.5), (0, 0, 0, 2), (0.5, 0, 2, 1.8)],
)
def test_loss_equals_its_restatement_element_by_element(alpha, beta, gamma, theta):
    student, teacher = logits(4, 5, 3)
    mask = torch.rand(4, 5, 1) < 0.7
    counted = [
        (z.item(), t.item())
        for z, t, m in zip(
            student.flatten(), teacher.flatten(), mask.expand(4, 5, 3).flatten(), strict=True
        )
        if m
    ]
    total = sum(restated(z, t, alpha, beta, gamma) for z, t in counted)
    normaliser = max(1, sum(sigmoid(t) ** theta for _, t in counted))
    assert normaliser > 1
    loss = AdaptiveDistillLoss(alpha, beta, gamma, theta)(student, teacher, mask)
    assert loss.item() == pytest.approx(total / normaliser, rel=1e-10)


@pytest.mark.parametrize('beta', [0, 1, 1.5])
@pytest.mark.parametrize('gamma', [0, 1, 1.5, 2])
def test_gradient(beta, gamma):
    student, teacher = logits(3, 4)
    mask = torch.tensor([[True], [False], [True]])
    assert torch.autograd.gradcheck(
        lambda z: AdaptiveDistillLoss(0.25, beta, gamma)(z, teacher, mask),
        student.requires_grad_(),
    )


def test_chunks_make_no_difference(monkeypatch):
    student, teacher = logits(5, 7)
    whole, grad = AdaptiveDistillLoss()(student, teacher), gradient(student, teacher)
    monkeypatch.setattr(import_module(AdaptiveDistillLoss.__module__), 'CPU_CHUNK', 8)
    torch.testing.assert_close(AdaptiveDistillLoss()(student, teacher), whole)
    torch.testing.assert_close(gradient(student, teacher), grad)


def test_elements_that_do_not_count_may_have_any_value():
    student, teacher = logits(6, 4)
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool).unsqueeze(1)
    expected = AdaptiveDistillLoss()(student[mask[:, 0]], teacher[mask[:, 0]])
    student[~mask[:, 0]], teacher[~mask[:, 0]] = torch.nan, torch.inf
    student.requires_grad_()
    loss = AdaptiveDistillLoss()(student, teacher, mask)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not student.grad[~mask[:, 0]].any()
    assert student.grad[mask[:, 0]].all()


def test_normaliser_is_at_least_one():
    student, teacher = torch.zeros(3), torch.full((3,), -5.0)
    expected = AdaptiveDistillLoss()(student, teacher, avg_factor=1)
    assert AdaptiveDistillLoss()(student, teacher) == expected
    assert AdaptiveDistillLoss()(student, teacher, avg_factor=torch.tensor(0.3)) == expected


def test_teacher_and_normaliser_get_no_gradient():
    student, teacher = (x.requires_grad_() for x in logits(3, 4))
    positives = (2 + student.sum() ** 2).clamp(min=2)
    AdaptiveDistillLoss()(student, teacher, avg_factor=positives).backward()
    expected = gradient(student.detach(), teacher.detach()) / positives.item()
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None


@pytest.mark.parametrize('gamma', [0, 1, 1.5, 2])
@pytest.mark.parametrize('beta', [0, 0.5, 1, 1.5])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_loss_and_gradient_are_finite_for_any_logits(gamma, beta, dtype):
    largest = min(torch.finfo(dtype).max, 1e37)
    values = torch.tensor([-largest, -1e4, -100, -17, -1, 0, 1, 17, 100, 1e4, largest])
    student, teacher = (x.to(dtype) for x in torch.meshgrid(values, values, indexing='ij'))
    student = student.clone().requires_grad_()
    loss = AdaptiveDistillLoss(beta=beta, gamma=gamma)(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert 0 <= loss.item() < math.inf
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() <= 1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_positives_of_half_precision_logits_are_counted_in_float32(dtype):
    teacher = torch.zeros(1, 3000, 80, dtype=dtype)
    count = soft_positive_count(teacher)
    assert count.item() == pytest.approx(3000 * 80 * 0.5**1.8, rel=1e-5)  # float16 ends at 65504
    loss = AdaptiveDistillLoss()(torch.ones_like(teacher), teacher)
    assert loss.item() == pytest.approx(
        AdaptiveDistillLoss()(torch.ones(1), torch.zeros(1)) / 0.5**1.8
    )


def test_rounding_leaves_no_negative_distance():
    teacher = torch.linspace(-9, 9, 500)
    student = (teacher * (1 + 1e-6)).requires_grad_()
    loss = AdaptiveDistillLoss(beta=0, gamma=1.5)(student, teacher)
    loss.backward()
    assert 0 <= loss.item() < 1e-6
    assert student.grad.isfinite().all()


def test_float32_is_accurate_where_both_are_certain():
    student, teacher = torch.tensor([12.0, -12.0, 14.0]), torch.tensor([13.0, -10.0, 9.0])
    expected = gradient(student.double(), teacher.double())
    torch.testing.assert_close(gradient(student, teacher).double(), expected, rtol=1e-4, atol=0)


def test_nothing_that_counts():
    student, teacher = (x.requires_grad_() for x in logits(2, 3))
    for x, y, mask in (
        (student, teacher, torch.zeros(2, 1, dtype=torch.bool)),
        (student[:0], teacher[:0], None),
    ):
        loss = AdaptiveDistillLoss()(x, y, mask)
        loss.backward()
        assert loss == 0
        assert not student.grad.any()
