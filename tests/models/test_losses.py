from importlib import import_module

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from mmdet_sssd.models import JSDistanceLoss, NormedMSELoss, SSIMLoss

DIMS = ('spatial', 'channel', 'all')


def js_distance(student, teacher, dim, tau=1.0):
    return JSDistanceLoss(dim, tau)([student], [teacher])


def distributions(x: np.ndarray, dim: str) -> np.ndarray:
    """One distribution a row: over h·w, over C, or over everything of an image."""
    batch, channels, height, width = x.shape
    rows = {
        'spatial': x.reshape(batch * channels, height * width),
        'channel': x.transpose(0, 2, 3, 1).reshape(-1, channels),
        'all': x.reshape(batch, -1),
    }[dim]
    rows = np.exp(rows - rows.max(1, keepdims=True))
    return rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize('dim', DIMS)
@pytest.mark.parametrize('tau', [0.3, 1.0, 4.0])
def test_js_loss_is_the_mean_over_levels_of_scipy_s_distances(dim, tau):
    shapes = [(2, 5, 4, 3), (2, 3, 2, 2), (2, 3, 1, 1)]
    student, teacher = ([torch.randn(s, dtype=torch.float64) * 3 for s in shapes] for _ in range(2))
    means = []
    for x, y in zip(student, teacher, strict=True):
        sides = (distributions(z.numpy() / tau, dim) for z in (x, y))
        means.append(np.mean([jensenshannon(*pair, base=2) for pair in zip(*sides, strict=True)]))
    loss = JSDistanceLoss(dim, tau)(student, teacher)
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-10)


@pytest.mark.parametrize('dim', DIMS)
def test_js_loss_gradient(dim):
    levels, teacher = (
        [torch.randn(2, c, n, 4, dtype=torch.float64) for c, n in ((3, 3), (2, 1))]
        for _ in range(2)
    )
    loss = JSDistanceLoss(dim=dim, tau=0.7)
    student = [x.requires_grad_() for x in levels]
    assert torch.autograd.gradcheck(lambda *x: loss(x, teacher), student)


def loss_and_gradient(student, teacher, dim, tau=1.0):
    student = student.detach().clone().requires_grad_()
    loss = js_distance(student, teacher, dim, tau)
    loss.backward()
    return loss.detach().double(), student.grad.double()


@pytest.mark.parametrize('dim', DIMS)
@pytest.mark.parametrize(('gap', 'rtol'), [(10, 2e-6), (1, 2e-6), (1e-2, 1e-4), (1e-4, 1e-2)])
def test_js_distance_is_accurate_between_nearly_equal_maps(dim, gap, rtol):
    student = torch.randn(2, 16, 20, 21)
    teacher = student + gap * torch.randn_like(student)
    loss, grad = loss_and_gradient(student, teacher, dim, 0.7)
    expected, expected_grad = loss_and_gradient(student.double(), teacher.double(), dim, 0.7)
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=0)
    assert (grad - expected_grad).abs().max() < rtol * expected_grad.abs().max()


@pytest.mark.parametrize('dim', DIMS)
@pytest.mark.parametrize('block', [1, 8, 40])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_blocks_and_memory_formats_make_no_difference(monkeypatch, dim, block, memory_format):
    student, teacher = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    expected = loss_and_gradient(student, teacher, dim)
    monkeypatch.setattr(import_module(JSDistanceLoss.__module__), 'BLOCK', block)
    student = student.contiguous(memory_format=memory_format)
    for other_format in (torch.contiguous_format, torch.channels_last):
        teacher = teacher.contiguous(memory_format=other_format)
        actual = loss_and_gradient(student, teacher, dim)
        torch.testing.assert_close(actual, expected)
        assert actual[1].stride() == student.stride()


@pytest.mark.parametrize('dim', DIMS)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_js_distance_keeps_one_map_for_backward(dim, memory_format):
    kept = []
    student, teacher = torch.randn(2, 2, 8, 12, 12)
    student = student.contiguous(memory_format=memory_format).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        js_distance(student, teacher.contiguous(memory_format=memory_format), dim)
    assert sum(x.numel() for x in kept) < 1.1 * student.numel()


def test_js_loss_compiles_to_one_graph_of_all_levels():
    student, teacher = ([torch.randn(2, 3, n, 5) for n in (4, 2)] for _ in range(2))
    loss, results = JSDistanceLoss(), []
    torch.compiler.reset()
    for function in (loss, torch.compile(loss, backend='aot_eager', fullgraph=True)):
        levels = [x.clone().requires_grad_() for x in student]
        value = function(levels, teacher)
        results.append((value, *torch.autograd.grad(value, levels)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    'loss',
    [SSIMLoss(), *(JSDistanceLoss(dim, tau=0.5) for dim in DIMS)],
    ids=['ssim', *DIMS],
)
def test_losses_are_finite_and_bounded(loss, dtype):
    x = torch.randn(2, 4, 17, 15, dtype=dtype)
    huge = torch.full_like(x, torch.finfo(dtype).max)
    huge[:, :, 0] *= -1
    constant = torch.full_like(x, 3)
    cases = {
        'equal': (x, x),
        'nearly equal': (x, x * (1 + torch.finfo(dtype).eps)),
        'constant': (torch.full_like(x, 7), constant),
        'equal and constant': (constant, constant),
        'constant student': (constant, x),
        'constant teacher': (x, constant),
        'far apart': (x + 1e4, x),
        'huge': (huge, -huge),
        'huge and equal': (huge, huge),
        'huge student': (huge, x),
        'huge teacher': (x, huge),
        'tiny': (x * 1e-6, x.flip(-1) * 1e-6),
        'one pixel': (x[..., :1, :1], -x[..., :1, :1]),
        'one channel': (x[:, :1], x[:, 1:2]),
        'no image': (x[:0], x[:0]),
        'no pixel': (x[:, :, :0], x[:, :, :0]),
    }
    for name, (student, teacher) in cases.items():
        student = student.clone().requires_grad_()
        value = loss([student], [teacher.clone()])
        value.backward()
        assert value.dtype == torch.float32, name
        assert 0 <= value.item() <= 1, name
        assert student.grad.isfinite().all(), name
        if 'equal' in name and 'nearly' not in name:
            assert value.item() == 0, name
            assert not student.grad.any(), name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_js_gradient_below_half_precision_s_numbers_is_kept_for_the_loss_scale(dtype):
    maps = torch.randn(2, 1, 4, 64, 64).to(dtype)
    grads = []
    for student, teacher in (maps, maps.float()):
        student = student.clone().requires_grad_()
        (2**16 * JSDistanceLoss()([student], [teacher])).backward()
        grads.append(student.grad.float())
    torch.testing.assert_close(*grads, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('largest', [1e20, None])
def test_normed_mse_is_finite_for_any_maps(dtype, largest):
    largest = min(largest or torch.finfo(dtype).max, torch.finfo(dtype).max)
    student = torch.full((2, 3, 4, 4), largest, dtype=dtype)
    student[:, :, 0] = 1
    student.requires_grad_()
    loss = NormedMSELoss()([student, student], [-student.detach(), student.detach()])
    loss.backward()
    assert loss.isfinite()
    assert loss > 1
    assert student.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_normed_mse_computes_in_float32(dtype):
    student, teacher = (300 * torch.randn(2, 8, 12, 12)).to(dtype), torch.randn(2, 8, 12, 12)
    loss = NormedMSELoss()([student], [teacher.to(dtype)])
    assert loss.dtype == torch.float32
    expected = (student.double() - teacher.to(dtype).double()).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize('loss', [JSDistanceLoss(), NormedMSELoss()])
def test_level_distances_are_the_losses_of_each_level_alone(loss):
    shapes = [(2, 3, 6, 5), (2, 4, 2, 2)]
    student, teacher = ([torch.randn(s) for s in shapes] for _ in range(2))
    alone = [loss([x], [y]) for x, y in zip(student, teacher, strict=True)]
    torch.testing.assert_close(loss.level_distances(student, teacher), torch.stack(alone))


@pytest.mark.parametrize('loss', [JSDistanceLoss(), NormedMSELoss()])
def test_levels_that_differ_are_refused(loss):
    x = torch.rand(1, 2, 3, 3)
    for student, teacher in (([x], [x, x]), ([x], [x[:, :1]]), ([], [])):
        with pytest.raises(ValueError, match='same levels'):
            loss(student, teacher)
