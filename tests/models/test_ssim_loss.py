from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from mmdet_sssd.models import SSIMLoss


def related_maps(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two float64 maps that are alike in part, of either sign; the second image is steeper."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    teacher = 0.6 * student + 0.5 * noise + 0.3
    teacher[1:] *= 40
    return student, teacher


def restated(x: np.ndarray, y: np.ndarray) -> float:
    """Mean SSIM of two planes of range 1: patch by patch, three factors, as the paper writes it."""
    size = min(11, *x.shape)
    size -= size % 2 == 0
    axis = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * 1.5**2))
    weight = np.outer(axis, axis) / axis.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            a, b = x[i : i + size, j : j + size], y[i : i + size, j : j + size]
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            std_a = np.sqrt((weight * (a - mean_a) ** 2).sum())
            std_b = np.sqrt((weight * (b - mean_b) ** 2).sum())
            covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            contrast = (2 * std_a * std_b + c2) / (std_a**2 + std_b**2 + c2)
            structure = (covariance + c2 / 2) / (std_a * std_b + c2 / 2)
            values.append(luminance * contrast * structure)
    return np.mean(values)


scikit_image = partial(
    structural_similarity,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
    data_range=1.0,
)


def dissimilarity(student, teacher, ssim) -> float:
    """Half of what is missing to an SSIM of 1, in the range of each image's teacher."""
    values = []
    for x, y in zip(student.numpy(), teacher.numpy(), strict=True):
        low, span = y.min(), np.ptp(y)
        pairs = zip((x - low) / span, (y - low) / span, strict=True)
        values += [(1 - ssim(a, b)) / 2 for a, b in pairs]
    return np.mean(values)


LARGE = [(11, 11), (12, 19), (25, 14)]
SMALL = [(12, 13), (10, 10), (7, 9), (4, 15), (2, 2), (1, 6), (1, 2)]


@pytest.mark.parametrize(
    ('ssim', 'size'), [*((scikit_image, x) for x in LARGE), *((restated, x) for x in SMALL)]
)
def test_ssim_s_window_is_the_largest_odd_size_that_fits(ssim, size):
    maps = related_maps(2, 3, *size)
    found = SSIMLoss()(*([x] for x in maps)).item()
    assert found == pytest.approx(dissimilarity(*maps, ssim), rel=1e-9)


@pytest.mark.parametrize('size', [(13, 12), (4, 6), (1, 3), (1, 2)])
def test_gradient(size):
    student, teacher = related_maps(1, 2, *size)
    loss = SSIMLoss()
    assert torch.autograd.gradcheck(lambda x: loss([x], [teacher]), student.requires_grad_())


def test_maps_can_be_worked_on_one_at_a_time(monkeypatch):
    student, teacher = related_maps(3, 2, 12, 13)
    module, results = import_module(SSIMLoss.__module__), []
    for chunk in (module.CPU_CHUNK, 1):
        monkeypatch.setattr(module, 'CPU_CHUNK', chunk)
        x = student.clone().requires_grad_()
        loss = SSIMLoss()([x], [teacher])
        results.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*results)


def test_float32_gradient_equals_float64s():
    grads = {}
    for dtype in (torch.float32, torch.float64):
        student, teacher = (x.to(dtype) for x in related_maps(2, 4, 20, 23))
        student.requires_grad_()
        SSIMLoss()([student], [teacher]).backward()
        grads[dtype] = student.grad.double()
    largest = grads[torch.float64].abs().max()
    assert (grads[torch.float32] - grads[torch.float64]).abs().max() < 2e-5 * largest


def test_a_constant_teacher_is_shifted_but_not_scaled():
    student, constant = torch.rand(1, 2, 12, 12) / 20, torch.full((1, 2, 12, 12), 5.0)
    zero = np.zeros((12, 12))
    expected = np.mean([(1 - restated(x.double().numpy(), zero)) / 2 for x in student[0]])
    loss = SSIMLoss()([student + 5], [constant])
    assert loss.item() == pytest.approx(expected, rel=1e-4)
