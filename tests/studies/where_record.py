"""What a run of ``tests.studies.where`` writes down: AP along it, and SSSD's gradients."""

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmdet_sssd.models import SSSDDistiller

LOSSES = ('detection', 'teacher', 'distill')


class RecordHook(Hook):
    """Adds a line to a file after each epoch's validation; a resumed run writes those it lost again.

    A line has the epoch, the metrics, the process's seconds, and, of a distiller, λ and the mean norms
    and cosines of the gradients since the last line: of the student's detection loss, the teacher's and
    the distillation loss with λ, in the neck's features, the head's and the backbone's parameters.

    Args:
        path: The file.
        interval: Iterations between two measurements of gradients.
    """

    priority = 'LOW'  # after validation's metrics

    def __init__(self, path: Path, interval: int) -> None:
        self.path = path
        self.interval = interval
        self.sums: dict[str, list[float]] = defaultdict(list)
        self.lines: list[dict] = []
        self.is_due = False

    def before_train(self, runner: Runner) -> None:
        """Keep the lines up to the checkpoint, and watch the losses."""
        if self.path.exists():
            lines = [json.loads(x) for x in self.path.read_text().splitlines()]
            self.lines = [x for x in lines if x['epoch'] <= runner.epoch]
        self.start = time.process_time()
        if isinstance(runner.model, SSSDDistiller):
            self._watch(runner.model)

    def _watch(self, model: SSSDDistiller) -> None:
        """Measure gradients within the step itself, so that it changes nothing."""
        compute, term = model.loss, model.terms['distill']

        def loss(*args, **kwargs) -> dict:
            feats = []
            handle = model.student.neck.register_forward_hook(lambda *x: feats.extend(x[-1]))
            losses = compute(*args, **kwargs)
            handle.remove()
            is_used = term.is_measured and not term.detach_student  # λ's hook reads gradients too
            if self.is_due and not is_used:
                self._measure(model, losses, feats)
            return losses

        model.loss = loss

    def _measure(self, model: SSSDDistiller, losses: dict, feats: Sequence[Tensor]) -> None:
        parts = dict(
            features=[*feats],
            head=[x for x in model.student.bbox_head.parameters() if x.requires_grad],
            backbone=[x for x in model.student.backbone.parameters() if x.requires_grad],
        )
        found = {name: gradients(total, parts) for name, total in by_origin(losses).items()}
        for part in parts:
            for name, gradient in found.items():
                self.sums[f'{part}.{name}'].append(gradient[part].norm().item())
            for one, other in combinations(found, 2):
                cosine = torch.cosine_similarity(found[one][part], found[other][part], dim=0)
                self.sums[f'{part}.cos({one}, {other})'].append(cosine.item())

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Ask for a measurement if one is due."""
        self.is_due = runner.iter % self.interval == 0

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write a line."""
        if any(x['epoch'] == runner.epoch for x in self.lines):
            return  # a resumed run validates again
        now = time.process_time()
        line = dict(epoch=runner.epoch, **coco(metrics), cpu_seconds=round(now - self.start))
        self.start = now
        if self.sums:
            line['distill_coef'] = round(runner.model.terms['distill'].distill_coef, 4)
            line['gradients'] = {x: float(f'{sum(y) / len(y):.3g}') for x, y in self.sums.items()}
        self.sums.clear()
        self.lines.append(line)
        self.path.write_text(''.join(json.dumps(x) + '\n' for x in self.lines))


def by_origin(losses: dict) -> dict[str, Tensor]:
    """Sum the losses of a step of SSSD by where they come from."""
    sums = dict.fromkeys(LOSSES, 0)
    for name, value in losses.items():
        if 'loss' in name:
            origin = 'teacher' if name.startswith('teacher.') else 'detection'
            values = value if isinstance(value, list) else [value]
            sums['distill' if name == 'loss_distill' else origin] += sum(x.mean() for x in values)
    return sums


def gradients(loss: Tensor, parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Compute a loss's gradient with respect to each part, as one vector each; 0 where it has none."""
    inputs = [x for part in parts.values() for x in part]
    loss = loss + 0 * inputs[0].sum()  # which may be a constant: a detached student without adapter
    flat = iter(torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True))
    return {
        name: torch.cat([next(flat).flatten() for _ in part]).float()
        for name, part in parts.items()
    }


def coco(metrics: dict[str, float]) -> dict[str, float]:
    """Shorten the names of COCO's metrics."""
    return {name.replace('coco/bbox_', ''): value for name, value in metrics.items()}
