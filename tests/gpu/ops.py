"""mmcv's compiled operators: on a GPU they give what they give on the CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmcv import ops
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch import Tensor

from .checks import Settings, Skipped, within

MOST_DIFFERING = 2  # boxes whose overlap is the threshold but for rounding
TOLERANCE = 1e-4  # of the largest value; sums are formed in another order


def boxes_in(size: int, count: int) -> Tensor:
    """Draw boxes inside a square."""
    corners = torch.rand(count, 2, 2) * size
    return torch.cat([corners.amin(1), corners.amax(1) + 1], 1)


def nms(settings: Settings) -> dict[str, Any]:
    """Keep the same boxes."""
    torch.manual_seed(0)
    boxes, scores = boxes_in(200, 1000), torch.rand(1000)
    _, expected = ops.nms(boxes, scores, 0.5)
    _, found = ops.nms(boxes.to(settings.device), scores.to(settings.device), 0.5)
    differing = set(found.tolist()) ^ set(expected.tolist())
    within('the number of boxes kept on one side alone', len(differing), MOST_DIFFERING)
    return dict(kept=len(expected))


def batched_nms(settings: Settings) -> dict[str, Any]:
    """Keep the same boxes of each class."""
    torch.manual_seed(0)
    data = boxes_in(200, 500), torch.rand(500), torch.randint(5, (500,))
    cfg = dict(type='nms', iou_threshold=0.5)
    _, expected = ops.batched_nms(*data, cfg)
    _, found = ops.batched_nms(*(x.to(settings.device) for x in data), cfg)
    differing = set(found.tolist()) ^ set(expected.tolist())
    within('the number of boxes kept on one side alone', len(differing), MOST_DIFFERING)
    return dict(kept=len(expected))


def against_cpu(
    make: Callable[[], tuple[Callable[..., Tensor], tuple[Tensor, ...]]], settings: Settings
) -> dict[str, Any]:
    """Compare the values and gradients of an operator with those that it has on the CPU."""
    found = {}
    for device in ('cpu', settings.device):
        torch.manual_seed(0)
        function, inputs = make()
        inputs = [x.to(device).requires_grad_(x.is_floating_point()) for x in inputs]
        out = function(*inputs)
        leaves = [x for x in inputs if x.requires_grad]
        out.backward(torch.cos(torch.arange(out.numel(), device=device)).view_as(out).to(out))
        found[device] = [out.detach().cpu(), *(x.grad.cpu() for x in leaves)]
    errors = [
        ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()
        for ours, theirs in zip(found[settings.device], found['cpu'], strict=True)
    ]
    numbers = dict(error=errors[0], gradient_error=max(errors[1:]))
    within('the largest relative error', max(errors), TOLERANCE, **numbers)
    return numbers


def _rois() -> Tensor:
    boxes = boxes_in(100, 50).half().float()  # which float16 has too
    return torch.cat([torch.randint(2, (50, 1)).float(), boxes], 1)


def make_roi_align() -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Pool boxes of a map; boxes get no gradient."""
    rois = _rois()
    pool = ops.RoIAlign(7, spatial_scale=0.25, sampling_ratio=0)
    return lambda x: pool(x, rois.to(x)), (torch.randn(2, 16, 32, 32),)


def make_deform_conv() -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Convolve with offsets."""
    x, offset, weight = (
        torch.randn(2, 8, 16, 16),
        torch.randn(2, 18, 16, 16),
        torch.randn(8, 8, 3, 3),
    )
    return partial(_deform_conv), (x, offset, weight)


def _deform_conv(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return ops.deform_conv2d(x, offset, weight, 1, 1)


def make_modulated_deform_conv() -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Convolve with offsets and a mask."""
    x, offset, weight = (
        torch.randn(2, 8, 16, 16),
        torch.randn(2, 18, 16, 16),
        torch.randn(8, 8, 3, 3),
    )
    mask, bias = torch.rand(2, 9, 16, 16), torch.randn(8)
    return partial(_modulated_deform_conv), (x, offset, mask, weight, bias)


def _modulated_deform_conv(*tensors: Tensor) -> Tensor:
    return ops.modulated_deform_conv2d(*tensors, 1, 1)


def make_deformable_attention() -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Attend to points of two levels; on the CPU by mmcv's own formula in plain torch."""
    sizes = torch.tensor([[8, 8], [4, 4]])
    value, points = torch.randn(2, 80, 4, 8), torch.rand(2, 6, 4, 2, 4, 2)
    weights = torch.rand(2, 6, 4, 2, 4)
    return partial(_deformable_attention, sizes), (value, points, weights)


def _deformable_attention(sizes: Tensor, value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    module = ops.multi_scale_deform_attn
    if value.is_cuda:
        starts = torch.tensor([0, 64], device=value.device)
        function = module.MultiScaleDeformableAttnFunction.apply
        return function(value, sizes.to(value.device), starts, points, weights, 64)
    return module.multi_scale_deformable_attn_pytorch(value, sizes, points, weights)


def make_focal_loss() -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Compute the focal loss that dense heads take on a GPU; on the CPU mmdet's in plain torch."""
    return partial(_focal_loss), (torch.randn(500, 80) * 4, torch.randint(81, (500,)))


def _focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.is_cuda:
        return ops.sigmoid_focal_loss(logits, labels.contiguous(), 2.0, 0.25, None, 'none')
    targets = torch.nn.functional.one_hot(labels, 81)[:, :80].to(logits)
    return py_sigmoid_focal_loss(logits, targets, reduction='none')


def half_precision(settings: Settings) -> dict[str, Any]:
    """Run in float16 what R-CNNs and DETRs run under mixed precision; near to float32."""
    if not settings.on_gpu:
        raise Skipped('only a GPU has these operators in float16')
    errors = {}
    for make in (make_roi_align, make_deformable_attention):
        torch.manual_seed(0)
        function, inputs = make()
        inputs = [x.cuda() for x in inputs]
        exact, rough = function(*inputs), function(*(x.half() for x in inputs))
        errors[make.__name__[5:]] = ((rough.float() - exact).abs().max() / exact.abs().max()).item()
    within('the largest relative error', max(errors.values()), 0.05, **errors)
    return errors


CHECKS = {
    'nms': nms,
    'batched_nms': batched_nms,
    'roi_align': partial(against_cpu, make_roi_align),
    'deform_conv': partial(against_cpu, make_deform_conv),
    'modulated_deform_conv': partial(against_cpu, make_modulated_deform_conv),
    'deformable_attention': partial(against_cpu, make_deformable_attention),
    'focal_loss': partial(against_cpu, make_focal_loss),
    'half_precision': half_precision,
}
