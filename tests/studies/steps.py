"""Five training steps of small detectors under every recipe: whether they changed.

With PYTHONPATH=. in a checkout of the old commit, then in this one, which lists what differs::

    python tests/studies/steps.py OLD.json
    python tests/studies/steps.py NEW.json --against OLD.json
"""

import argparse
import copy
import hashlib
import json
import sys
from inspect import signature
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.logging import MessageHub

import mmdet_sssd  # noqa: F401  (registers)
from mmdet_sssd.models import LabelEncoderTeacher
from tests.stock_detectors import demo_batch, stock_config

DETECTORS = ('retinanet', 'fcos', 'faster_rcnn', 'yolox', 'rtmdet', 'dino', 'mask_rcnn')
BOXES_RANKED = 'cls|centerness|iou|obj|heat|rpn_head|roi_head'
RECIPES = {
    'default': {},
    'gentle': dict(economy=True, teacher_head_grad={BOXES_RANKED: 0}),
    'paper': dict(distill_coef=10.0),
    'lgd': dict(
        distill_loss=dict(type='NormedMSELoss'),
        teacher=dict(soft_regions=False),
        reuse_assignment=True,
    ),
}
NUM_STEPS = 5
ROUNDING = 1e-4


def run(detector: str, recipe: str) -> list[dict[str, str | float]]:
    """Train for five seeded steps; keep each one's loss, gradient norm, and a hash of all bits."""
    settings = copy.deepcopy(RECIPES[recipe])
    if detector == 'rtmdet':
        settings.pop('reuse_assignment', None)  # refused
    # whose defaults changed since then
    old = dict(detach_appearance=False)
    if 'class_vectors' in signature(LabelEncoderTeacher).parameters:
        old['class_vectors'] = False
    settings['teacher'] = dict(settings.get('teacher', {}), **old)
    torch.manual_seed(0)
    config = dict(type='SSSDDistiller', student=stock_config(detector), **settings)
    model = MODELS.build(config).train()
    model.init_weights()
    MessageHub.get_current_instance().update_info('epoch', 0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    term = model.terms['distill']
    steps = []
    for step in range(NUM_STEPS):
        torch.manual_seed(step)
        data = demo_batch(model, with_mask=detector == 'mask_rcnn')
        term.detach_student, term.is_measured = step == 0, step % 2 == 1
        losses = model(**data, mode='loss')
        total, logged = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norms = torch.stack([x.norm() for x in grads.values()])
        steps.append(
            dict(bits=_hash(logged) + _hash(grads), loss=total.item(), gradient=norms.norm().item())
        )
        optimizer.step()
    return steps


def _hash(values: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(name.encode() + values[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Run all pairs, write their hashes, compare them with an older file's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path)
    parser.add_argument('--against', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    register_all_modules()
    found = {f'{d} {r}': run(d, r) for d in DETECTORS for r in RECIPES}
    args.out.write_text(json.dumps(found, indent=1) + '\n')
    if args.against:
        old = json.loads(args.against.read_text())
        different = {x: _difference(found[x], old[x]) for x in found if found[x] != old[x]}
        for name, difference in different.items():
            print(f'{name}: {difference:.1e}')
        print(f'{len(different)} of {len(found)} differ in some bit')
        sys.exit(max(different.values(), default=0) > ROUNDING)


def _difference(steps: list[dict], old: list[dict]) -> float:
    """Find the largest relative difference of a loss or a gradient norm."""
    pairs = zip(steps, old, strict=True)
    return max(abs(a[x] - b[x]) / abs(b[x]) for a, b in pairs for x in ('loss', 'gradient'))


if __name__ == '__main__':
    main()
