"""Counts operators and waits of training steps by part, with the code paths of a GPU.

python -m tests.studies.operators retinanet/retinanet_r50_fpn_1x_coco.py …
"""

import sys

import torch

from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, run_benchmark
from mmdet_sssd.models import JSDistanceLoss

ARMS = ['baseline', 'paper', 'paper+economy=True', 'gentle']


def main(configs: list[str], shape: tuple[int, int] = (320, 320)) -> None:
    """Print the table of each config of mmdet."""
    sys.modules[JSDistanceLoss.__module__]._JSDistances.blockwise = False
    for config in configs:
        print(config)
        options = BenchmarkOptions(f'mmdet::{config}', ARMS, shape=shape, device='cpu', steps=1)
        run_benchmark(options)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(sys.argv[1:])
