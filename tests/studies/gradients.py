"""Measures direction and strength of each loss's gradient in the student's backbone.

Run it from the root of the repository, on a run of an ``SSSDDistiller`` (a minute):

    export SSSD_DATA_ROOT=data/cells …                       (as in the run)
    python -m tests.studies.gradients work_dirs/my_config/my_config.py work_dirs/my_config/epoch_24.pth

For each loss it prints, averaged over training batches: its value, the norm of its gradient with
respect to the backbone's parameters relative to that of the student's detection loss, and the cosine
between the two gradients. λ is 1.
"""

import tempfile
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

import torch
from mmengine.config import Config
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor

from mmdet_sssd.models import JSDistanceLoss, NormedMSELoss, SSSDDistiller
from mmdet_sssd.models.adapters import instance_norm

LOSSES = {
    'JSDistanceLoss, spatial': JSDistanceLoss('spatial'),
    'JSDistanceLoss, channel': JSDistanceLoss('channel'),
    'JSDistanceLoss, all': JSDistanceLoss('all'),
    'NormedMSELoss': NormedMSELoss(),
}


def losses_of(model: SSSDDistiller, batch: dict) -> Iterator[tuple[str, Tensor]]:
    """Compute every loss of a batch; the student's detection loss comes first."""
    batch = model.data_preprocessor(batch, training=True)
    images, samples = batch['inputs'], batch['data_samples']
    losses, outputs = model._student_pass(images, samples)
    yield 'student', model.parse_losses(losses)[0]
    losses, made = model._teacher_passes(outputs, images, samples)
    yield 'teacher', model.parse_losses(losses)[0]
    adapted = model.terms['distill'].adapter(outputs.feats)
    target = made['teacher'].detach().feats
    sides = [[instance_norm(x) for x in levels] for levels in (adapted, target)]
    for name, loss in LOSSES.items():
        yield name, loss(*sides)


def gradient(loss: Tensor, model: SSSDDistiller) -> Tensor:
    """Gradient with respect to the student's backbone, as one vector."""
    parameters = [x for x in model.student.backbone.parameters() if x.requires_grad]
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([x.flatten() for x in grads])


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--batches', type=int, default=8)
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.work_dir, cfg.custom_hooks, cfg.randomness = tempfile.mkdtemp(), [], dict(seed=0)
    runner = Runner.from_cfg(cfg)
    load_checkpoint(runner.model, args.checkpoint, map_location='cpu')
    runner.model.train()
    sums = defaultdict(lambda: torch.zeros(3))
    batches = [*islice(runner.build_dataloader(cfg.train_dataloader), args.batches)]
    for batch in batches:
        reference = None
        for name, loss in losses_of(runner.model, batch):
            found = gradient(loss, runner.model).double()  # long enough for float32 to show
            reference = found if reference is None else reference
            cosine = torch.cosine_similarity(found, reference, dim=0)
            sums[name] += torch.stack([loss.detach(), found.norm() / reference.norm(), cosine])
    print(f'{"loss":24} {"value":>7} {"norm":>7} {"cosine":>7}')
    for name, total in sums.items():
        print(f'{name:24}', *(f'{x:7.3f}' for x in (total / len(batches)).tolist()))


if __name__ == '__main__':
    main()
