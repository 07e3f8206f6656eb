"""mmcv's compiled operators: on a GPU they give what they give on the CPU."""

from functools import partial

import pytest
import torch
from mmcv import ops
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch import Tensor

from . import DEVICE, ON_GPU

MOST_DIFFERING = 2  # boxes whose overlap is the threshold but for rounding
TOLERANCE = 1e-4  # of the largest value; sums are formed in another order


def boxes_in(size: int, count: int) -> Tensor:
    """Draw boxes inside a square."""
    corners = torch.rand(count, 2, 2) * size
    return torch.cat([corners.amin(1), corners.amax(1) + 1], 1)


def test_nms_keeps_the_same_boxes():
    torch.manual_seed(0)
    boxes, scores, labels = boxes_in(200, 1000), torch.rand(1000), torch.randint(5, (1000,))
    cfg = dict(type='nms', iou_threshold=0.5)
    kept = [
        ops.batched_nms(*(x.to(device) for x in (boxes, scores, labels)), cfg)[1].tolist()
        for device in ('cpu', DEVICE)
    ]
    assert len({*kept[0]} ^ {*kept[1]}) <= MOST_DIFFERING


def make_roi_align():
    """Pool boxes of a map; boxes get no gradient."""
    boxes = boxes_in(100, 50).half().float()  # which float16 has too
    rois = torch.cat([torch.randint(2, (50, 1)).float(), boxes], 1)
    pool = ops.RoIAlign(7, spatial_scale=0.25, sampling_ratio=0)
    return lambda x: pool(x, rois.to(x)), (torch.randn(2, 16, 32, 32),)


def make_modulated_deform_conv():
    """Convolve with offsets and a mask."""
    x, offset, weight = (
        torch.randn(2, 8, 16, 16),
        torch.randn(2, 18, 16, 16),
        torch.randn(8, 8, 3, 3),
    )
    mask, bias = torch.rand(2, 9, 16, 16), torch.randn(8)
    convolve = lambda *tensors: ops.modulated_deform_conv2d(*tensors, 1, 1)  # noqa: E731
    return convolve, (x, offset, mask, weight, bias)


def make_deformable_attention():
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


def make_focal_loss():
    """Compute the focal loss that dense heads take on a GPU; on the CPU mmdet's in plain torch."""
    return _focal_loss, (torch.randn(500, 80) * 4, torch.randint(81, (500,)))


def _focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.is_cuda:
        return ops.sigmoid_focal_loss(logits, labels.contiguous(), 2.0, 0.25, None, 'none')
    targets = torch.nn.functional.one_hot(labels, 81)[:, :80].to(logits)
    return py_sigmoid_focal_loss(logits, targets, reduction='none')


@pytest.mark.parametrize(
    'make',
    [
        make_roi_align,
        make_modulated_deform_conv,
        make_deformable_attention,
        make_focal_loss,
    ],
)
def test_values_and_gradients_are_those_on_the_cpu(make, note):
    found = {}
    for device in ('cpu', DEVICE):
        torch.manual_seed(0)
        function, inputs = make()
        inputs = [x.to(device).requires_grad_(x.is_floating_point()) for x in inputs]
        out = function(*inputs)
        leaves = [x for x in inputs if x.requires_grad]
        out.backward(torch.cos(torch.arange(out.numel(), device=device)).view_as(out).to(out))
        found[device] = [out.detach().cpu(), *(x.grad.cpu() for x in leaves)]
    errors = [
        ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()
        for ours, theirs in zip(found[DEVICE], found['cpu'], strict=True)
    ]
    note(error=errors[0], gradient_error=max(errors[1:]))
    assert max(errors) <= TOLERANCE


@pytest.mark.skipif(not ON_GPU, reason='only a GPU has these operators in float16')
@pytest.mark.parametrize('make', [make_roi_align, make_deformable_attention])
def test_half_precision_is_near_float32(make, note):
    torch.manual_seed(0)
    function, inputs = make()
    inputs = [x.cuda() for x in inputs]
    exact, rough = function(*inputs), function(*(x.half() for x in inputs))
    error = ((rough.float() - exact).abs().max() / exact.abs().max()).item()
    note(error=error)
    assert error <= 0.05
