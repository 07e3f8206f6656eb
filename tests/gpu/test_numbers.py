"""The package's own computations: on a GPU they give what they give on the CPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModel
from torch import Tensor

from mmdet_sssd.commands.random_batch import random_batch

from ..stock_detectors import stock_config
from . import DEVICE, ON_GPU

TOLERANCE = 1e-4
STEP_TOLERANCE = 1e-3  # a whole step's; batch norms of few values amplify rounding


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute convolutions in float32 itself, not in TF32, which has 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, as a share of what is expected."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize(
    'config',
    [
        dict(type='JSDistanceLoss'),
        dict(type='JSDistanceLoss', dim='channel'),
        dict(type='JSDistanceLoss', dim='all'),
        dict(type='NormedMSELoss'),
        dict(type='SSIMLoss'),
    ],
    ids=str,
)
def test_losses_are_those_in_float64_on_the_cpu(config, note):
    """On flat and steep maps, with their gradients."""
    torch.manual_seed(0)
    errors = []
    for scale in (1e-2, 1.0, 3.0):
        maps = [scale * torch.randn(2, 2, 16, side, side + 3) for side in (24, 5)]
        found = {}
        for device, dtype in (('cpu', torch.float64), (DEVICE, torch.float32)):
            student = [x[0].to(device, dtype).requires_grad_() for x in maps]
            value = MODELS.build(config)(student, [x[1].to(device, dtype) for x in maps])
            value.backward()
            found[dtype] = [value, *(x.grad for x in student)]
        errors += map(relative_error, found[torch.float32], found[torch.float64])
    note(error=max(errors))
    assert max(errors) <= TOLERANCE


def test_the_loss_between_logits_is_that_in_float64_on_the_cpu(note):
    torch.manual_seed(0)
    logits, found = 6 * torch.randn(2, 2, 200, 20), {}
    for device, dtype in (('cpu', torch.float64), (DEVICE, torch.float32)):
        student = logits[0].to(device, dtype).requires_grad_()
        value = MODELS.build(dict(type='AdaptiveDistillLoss'))(student, logits[1].to(device, dtype))
        value.backward()
        found[dtype] = [value, student.grad]
    error = max(map(relative_error, found[torch.float32], found[torch.float64]))
    note(error=error)
    assert error <= TOLERANCE


def distiller(name: str, device: str) -> BaseModel:
    """Build a small distilled detector, on every device with the same weights."""
    torch.manual_seed(0)
    model = MODELS.build(dict(type='SSSDDistiller', student=stock_config(name)))
    model.init_weights()
    return model.to(device).train()


def batch_of(model: BaseModel) -> dict:
    """Make a batch for a model as its data preprocessor gives it."""
    return model.data_preprocessor(copy.deepcopy(random_batch(model, (128, 160), 2, 5)), True)


def test_the_teacher_s_features(note):
    made = []
    for device in ('cpu', DEVICE):
        model = distiller('retinanet', device)
        data = batch_of(model)
        torch.manual_seed(1)
        feats = [torch.randn(2, 32, 16 >> i, 20 >> i).to(device) for i in range(4)]
        with full_float32(), torch.no_grad():
            neck = model.teachers['teacher'].neck
            made.append(neck(feats, data['inputs'], data['data_samples']))
    error = max(map(relative_error, made[1], made[0]))
    note(error=error)
    assert error <= TOLERANCE


@pytest.mark.parametrize('name', ['retinanet', 'fcos'] if ON_GPU else ['retinanet'])
def test_losses_and_gradients_of_a_step(name, note):
    losses, gradients = [], []
    for device in ('cpu', DEVICE):
        model = distiller(name, device)
        with full_float32():
            total, logged = model.parse_losses(model(**batch_of(model), mode='loss'))
            total.backward()
        losses.append({key: value.item() for key, value in logged.items()})
        gradients.append(torch.cat([x.grad.flatten().cpu() for x in model.parameters()]))
    loss_error = max(abs(losses[1][k] - x) / (abs(x) + 1e-3) for k, x in losses[0].items())
    gradient_error = relative_error(gradients[1], gradients[0])
    note(loss_error=loss_error, gradient_error=gradient_error)
    assert loss_error <= STEP_TOLERANCE
    assert gradient_error <= 10 * STEP_TOLERANCE
