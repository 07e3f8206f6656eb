"""Compares the speed of the implicit teacher with that of a plain formulation.

    python -m tests.studies.plain_teacher plain_teacher.json --objects 1 8 30 100 300

The plain formulation averages features under full masks by element-wise products, paints each
object's vector onto its region, and convolves the painted map. Both have the same weights, and their
outputs must agree to 1e-4. Forward and backward passes are taken in turn, at 2×800×1344 with levels of
strides 8 to 128 and 256 channels.
"""

import json
import time
from argparse import ArgumentParser
from pathlib import Path

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmdet_sssd.commands.benchmark.costs import quartiles
from mmdet_sssd.commands.random_batch import random_boxes
from mmdet_sssd.commands.training_steps import seconds_in_turn
from mmdet_sssd.models import LabelEncoderTeacher
from mmdet_sssd.models.label_encoder_teacher import AppearanceEncoder, Brush, KnowledgeMapper
from mmdet_sssd.models.labelled_objects import Regions

STRIDES = (8, 16, 32, 64, 128)
CHANNELS = 256


class PlainAppearance(AppearanceEncoder):
    """Averages under full masks."""

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        areas = regions.sum((2, 3)).clamp(min=1e-6)
        return torch.einsum('bchw,bnhw->bnc', y, regions) / areas.unsqueeze(-1)


class PlainMapper(KnowledgeMapper):
    """Paints, then convolves."""

    def painted_conv(self, brush: Brush, regions: Regions) -> Tensor:
        painted = torch.einsum('bnc,bnhw->bchw', brush.objects, regions.maps[:, 1:])
        painted = F.conv2d(painted, self.object_conv.weight, padding=1)
        return painted + brush.bias[:, :, None, None]


def plain_copy(teacher: LabelEncoderTeacher) -> LabelEncoderTeacher:
    """Make the plain formulation, with the same weights."""
    plain = LabelEncoderTeacher(CHANNELS, teacher.num_classes)
    plain.appearance_encoder = PlainAppearance(CHANNELS)
    plain.knowledge_mapper = PlainMapper(CHANNELS, True, refine_convs=3)
    plain.load_state_dict(teacher.state_dict())
    return plain.to(next(teacher.parameters()))


class Pass:
    """Forward and backward pass of a teacher on the same features and labels."""

    def __init__(self, teacher: LabelEncoderTeacher, shape: tuple[int, int], objects: int) -> None:
        device = next(teacher.parameters()).device
        generator = torch.Generator().manual_seed(0)
        sizes = [[-(-side // stride) for side in shape] for stride in STRIDES]
        self.teacher = teacher
        self.feats = [
            torch.randn(2, CHANNELS, *x, generator=generator).to(device).requires_grad_()
            for x in sizes
        ]
        self.images = torch.zeros(2, 3, *shape, device=device)
        self.samples = []
        for _ in range(2):
            sample = DetDataSample(metainfo=dict(img_shape=shape))
            sample.gt_instances = InstanceData(
                bboxes=random_boxes(objects, shape, generator).to(device),
                labels=torch.randint(teacher.num_classes, (objects,), generator=generator).to(
                    device
                ),
            )
            self.samples.append(sample)
        self.gradients = [torch.randn(x.shape, generator=generator).to(device) for x in self.feats]

    def outputs(self) -> tuple[Tensor, ...]:
        return self.teacher(self.feats, self.images, self.samples)

    def step(self) -> float:
        for x in (*self.feats, *self.teacher.parameters()):
            x.grad = None
        started = self._now()
        torch.autograd.backward(self.outputs(), self.gradients)
        return self._now() - started

    def all_gradients(self) -> list[Tensor]:
        self.step()
        return [x.grad for x in (*self.feats, *self.teacher.parameters())]

    def _now(self) -> float:
        if self.images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def compare(objects: int, shape: tuple[int, int], steps: int, device: str) -> dict:
    torch.manual_seed(0)
    ours = LabelEncoderTeacher(CHANNELS, 80).to(device)
    passes = {
        'ours': Pass(ours, shape, objects),
        'plain': Pass(plain_copy(ours), shape, objects),
    }
    with torch.no_grad():
        pairs = zip(*(x.outputs() for x in passes.values()), strict=True)
        worst = max(float((one - other).abs().max()) for one, other in pairs)
    assert worst < 1e-4, f'the outputs differ by {worst}'
    gradients = zip(*(x.all_gradients() for x in passes.values()), strict=True)
    worst_gradient = max(
        float((one - other).abs().max() / (other.abs().max() + 1e-12)) for one, other in gradients
    )
    seconds = seconds_in_turn(passes, 1, steps)
    ratios = [plain / own for own, plain in zip(seconds['ours'], seconds['plain'], strict=True)]
    return dict(
        objects=objects,
        seconds={name: [*quartiles(x).values()] for name, x in seconds.items()},
        speedup=[*quartiles(ratios).values()],
        largest_difference=worst,
        largest_gradient_difference=worst_gradient,
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path)
    parser.add_argument('--objects', type=int, nargs='+', default=[1, 8, 30, 100, 300])
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1344))
    parser.add_argument('--steps', type=int, default=9)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    rows, console = [], Console()
    table = Table('objects', 'ours', 'plain', 'plain / ours (quartiles)', 'largest difference')
    for objects in args.objects:
        row = compare(objects, tuple(args.shape), args.steps, args.device)
        rows.append(row)
        console.print(row, highlight=False)
        low, median, high = row['speedup']
        table.add_row(
            str(objects),
            *(f'{row["seconds"][name][1]:.3f} s' for name in ('ours', 'plain')),
            f'{median:.2f} ({low:.2f} – {high:.2f})',
            f'{row["largest_difference"]:.1e}, gradient {row["largest_gradient_difference"]:.1e}',
        )
    args.out.write_text(json.dumps(dict(shape=args.shape, rows=rows), indent=1) + '\n')
    console.print(table)


if __name__ == '__main__':
    main()
