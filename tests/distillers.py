"""Distillers of small detectors, and what a training step of theirs gives."""

import copy
from functools import partial

import torch
from mmdet.registry import MODELS

from .stock_detectors import demo_batch, stock_config

TOY = dict(type='ToyDetector', data_preprocessor=dict(type='DetDataPreprocessor'))
SSIM = dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss'))
MSE = dict(type='FeatureTerm', distill_loss=dict(type='NormedMSELoss'))
ADL = dict(type='LogitTerm')

assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)
"""Asserts that tensors, or those of two dicts or lists, are the same to the bit."""


def pretrained(config=TOY) -> dict:
    """Make the config of a teacher of random weights."""
    return dict(type='PretrainedTeacher', config=config, checkpoint=None)


def build(student, **settings):
    """Make a distiller as a runner does: built, initialised, in training mode.

    Args:
        student: The student's config, or a name of ``stock_detectors``.
        settings: The distiller's others; ``type`` defaults to the preset.
    """
    torch.manual_seed(0)
    student = stock_config(student) if isinstance(student, str) else student
    config = {'type': 'SSSDDistiller', 'student': student, **settings}
    model = MODELS.build(copy.deepcopy(config))
    model.init_weights()
    return model.train()


def losses_of(model, data=None, seed=1) -> dict:
    """Compute a model's losses, by default of ``demo_batch``; R-CNNs draw samples by the seed."""
    torch.manual_seed(seed)
    return model(**copy.deepcopy(data or demo_batch(model)), mode='loss')


def gradients(model, loss) -> dict:
    """Give a loss's gradients by trained parameter, None for those it does not reach."""
    named = {name: x for name, x in model.named_parameters() if x.requires_grad}
    found = torch.autograd.grad(loss, [*named.values()], retain_graph=True, allow_unused=True)
    return dict(zip(named, found, strict=True))


def without_gradient(model) -> list[str]:
    """Name the trained parameters without a gradient, for which DDP would wait."""
    return [name for name, x in model.named_parameters() if x.requires_grad and x.grad is None]


def backward(model, losses) -> dict:
    """Send a step's gradients back; gives what is logged."""
    total, logged = model.parse_losses(losses)
    total.backward()
    return logged
