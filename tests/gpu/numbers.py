"""The package's own computations: on a GPU they give what they give on the CPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModel
from torch import Tensor

from mmdet_sssd.commands.random_batch import random_batch

from ..stock_detectors import stock_config
from .checks import Settings, within

TOLERANCE = 1e-4
STEP_TOLERANCE = 1e-3  # a whole step's; batch norms of few values amplify rounding
LOSSES = {
    'js_spatial': dict(type='JSDistanceLoss'),
    'js_channel': dict(type='JSDistanceLoss', dim='channel'),
    'js_all': dict(type='JSDistanceLoss', dim='all'),
    'normed_mse': dict(type='NormedMSELoss'),
    'ssim': dict(type='SSIMLoss'),
}


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


def loss(config: dict, settings: Settings) -> dict[str, Any]:
    """Compare a loss and its gradient with those in float64 on the CPU, on flat and steep maps."""
    errors = []
    torch.manual_seed(0)
    for scale in (1e-2, 1.0, 3.0):
        maps = [scale * torch.randn(2, 2, 16, side, side + 3) for side in (24, 5)]
        found = {}
        for device, dtype in (('cpu', torch.float64), (settings.device, torch.float32)):
            student = [x[0].to(device, dtype).requires_grad_() for x in maps]
            value = MODELS.build(config)(student, [x[1].to(device, dtype) for x in maps])
            value.backward()
            found[dtype] = [value, *(x.grad for x in student)]
        errors += map(relative_error, found[torch.float32], found[torch.float64])
    within('the largest relative error', max(errors), TOLERANCE, error=max(errors))
    return dict(error=max(errors))


def adaptive_distill_loss(settings: Settings) -> dict[str, Any]:
    """Compare SAD's loss between logits likewise."""
    torch.manual_seed(0)
    logits, found = 6 * torch.randn(2, 2, 200, 20), {}
    for device, dtype in (('cpu', torch.float64), (settings.device, torch.float32)):
        student = logits[0].to(device, dtype).requires_grad_()
        value = MODELS.build(dict(type='AdaptiveDistillLoss'))(student, logits[1].to(device, dtype))
        value.backward()
        found[dtype] = [value, student.grad]
    error = max(map(relative_error, found[torch.float32], found[torch.float64]))
    within('the largest relative error', error, TOLERANCE, error=error)
    return dict(error=error)


def distiller(name: str, device: str) -> BaseModel:
    """Build a small distilled detector, on every device with the same weights."""
    torch.manual_seed(0)
    model = MODELS.build(dict(type='SSSDDistiller', student=stock_config(name)))
    model.init_weights()
    return model.to(device).train()


def batch_of(model: BaseModel) -> dict:
    """Make a batch for a model as its data preprocessor gives it."""
    return model.data_preprocessor(copy.deepcopy(random_batch(model, (128, 160), 2, 5)), True)


def teacher(settings: Settings) -> dict[str, Any]:
    """Compare the features that the implicit teacher makes."""
    made = []
    for device in ('cpu', settings.device):
        model = distiller('retinanet', device)
        data = batch_of(model)
        torch.manual_seed(1)
        feats = [torch.randn(2, 32, 16 >> i, 20 >> i).to(device) for i in range(4)]
        with full_float32(), torch.no_grad():
            neck = model.teachers['teacher'].neck
            made.append(neck(feats, data['inputs'], data['data_samples']))
    error = max(map(relative_error, made[1], made[0]))
    within('the largest relative error', error, TOLERANCE, error=error)
    return dict(error=error)


def step(name: str, settings: Settings) -> dict[str, Any]:
    """Compare the losses and gradients of a whole distilled step."""
    losses, gradients = [], []
    for device in ('cpu', settings.device):
        model = distiller(name, device)
        with full_float32():
            total, logged = model.parse_losses(model(**batch_of(model), mode='loss'))
            total.backward()
        losses.append({key: value.item() for key, value in logged.items()})
        gradients.append(torch.cat([x.grad.flatten().cpu() for x in model.parameters()]))
    errors = dict(
        loss_error=max(
            abs(losses[1][key] - value) / (abs(value) + 1e-3) for key, value in losses[0].items()
        ),
        gradient_error=relative_error(gradients[1], gradients[0]),
    )
    within('the relative error of a loss', errors['loss_error'], STEP_TOLERANCE, **errors)
    within('that of the gradients', errors['gradient_error'], 10 * STEP_TOLERANCE, **errors)
    return errors


CHECKS = {
    **{name: partial(loss, config) for name, config in LOSSES.items()},
    'adaptive_distill': adaptive_distill_loss,
    'teacher': teacher,
    'step_of_retinanet': partial(step, 'retinanet'),
    'step_of_fcos': partial(step, 'fcos'),
}
