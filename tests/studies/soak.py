"""Trains for a long time and checks that memory and files do not grow.

Run it from the root of the repository (about half an hour on one core):

    python -m tests.studies.soak work_dirs/soak [--iterations 20000]

A small distilled RetinaNet trains on drawn shapes, with validation, checkpoints and logs as in a long
run. The folder gets ``memory.csv`` (iteration, resident MiB, bytes and number of all files except logs)
and ``memory.png``. The study fails if, from a tenth of the run to its end, the resident set grows by
more than 2%, or there are more files. Checkpoints do grow, by 16 bytes for each logged scalar and
iteration: mmengine keeps their history in its message hub.
"""

import csv
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import matplotlib as mpl
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

mpl.use('agg')
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
MOST_GROWTH = 1.02
LOGS = {'.log', '.json'}
CONFIG = """
_base_ = ['{root}/configs/demo/sssd_retinanet_r18-small_own-data.py']
custom_imports = dict(imports=['mmdet_sssd', 'tests.studies.soak'])
custom_hooks = [dict(type='MemoryHook', file='{memory}', interval={iterations} // 100)]
model = dict(student=dict(backbone=dict(base_channels=8), neck=dict(
    in_channels=[8, 16, 32, 64], out_channels=16), bbox_head=dict(in_channels=16, feat_channels=16)))
train_dataloader = dict(num_workers=0, persistent_workers=False, batch_sampler=None,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True))
val_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={iterations},
    val_interval={iterations} // 20)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[{iterations} * 8 // 12], gamma=0.1)]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval={iterations} // 20, max_keep_ckpts=2),
    logger=dict(interval=50))
log_processor = dict(by_epoch=False)
"""


@HOOKS.register_module()
class MemoryHook(Hook):
    """Records the resident set and the size of the run's files."""

    priority = 'LOWEST'

    def __init__(self, file: str, interval: int) -> None:
        self.file = file
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx: int, **_) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        resident = pages * os.sysconf('SC_PAGE_SIZE') / 2**20
        files = [x for x in Path(runner.work_dir).rglob('*') if x.is_file()]
        size = sum(x.stat().st_size for x in files if x.suffix not in LOGS)
        with open(self.file, 'a', newline='') as file:
            csv.writer(file).writerow([runner.iter + 1, f'{resident:.1f}', size, len(files)])


def draw(rows: list[list[float]], path: Path) -> None:
    """Draw the resident set against the iteration."""
    figure, axes = plt.subplots(figsize=(6, 3), layout='constrained')
    axes.plot([row[0] for row in rows], [row[1] for row in rows])
    axes.set_ylim(bottom=0)
    axes.set_xlabel('iteration')
    axes.set_ylabel('resident set (MiB)')
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--iterations', type=int, default=20000)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    shapes, memory = args.out / 'shapes', args.out / 'memory.csv'
    make = ['-m', 'mmdet_sssd', 'shapes', shapes, '--train', '32', '--val', '8', '--size', '64']
    subprocess.run([sys.executable, *map(str, make)], cwd=ROOT, check=True)
    config = args.out / 'soak.py'
    config.write_text(CONFIG.format(root=ROOT, memory=memory.resolve(), iterations=args.iterations))
    env = dict(
        SSSD_DATA_ROOT=str(shapes.resolve()),
        SSSD_TRAIN_IMG='train',
        SSSD_VAL_IMG='val',
        SSSD_IMAGE_SCALE='64x64',
        SSSD_BATCH_SIZE='2',
        OMP_NUM_THREADS='1',
        PYTHONPATH=str(ROOT),
    )
    train = ['tools/train.py', config.resolve(), '--work-dir', (args.out / 'run').resolve()]
    subprocess.run(
        [sys.executable, *map(str, train)], cwd=ROOT, env={**os.environ, **env}, check=True
    )
    rows = [[float(x) for x in row] for row in csv.reader(memory.open())]
    draw(rows, args.out / 'memory.png')
    early, late = rows[len(rows) // 10 - 1], rows[-1]
    growth = late[1] / early[1]
    print(f'resident set: {early[1]} MiB after {early[0]:.0f} iterations, {late[1]} MiB at the end')
    for when, row in (('early', early), ('at the end', late)):
        print(f'{when}: {row[3]:.0f} files except logs, {row[2]:.0f} bytes')
    sys.exit(growth > MOST_GROWTH or late[3] > early[3])


if __name__ == '__main__':
    main()
