"""Kills training runs and checks whether the resumed runs end like uninterrupted ones.

Run it from the root of the repository (about half an hour on one core). Everything is kept in the given
folder; repeat the command to continue an interrupted study.

    export SSSD_DATA_ROOT=data/cells SSSD_IMAGE_SCALE=96x72   (docs/tutorials/own_data.md has more)
    python -m tests.studies.killed_runs work_dirs/killed_runs

For a small RetinaNet and a small Faster R-CNN on real images:

- *random*: 2000 iterations, killed at three random moments;
- *writing*: 240 iterations with a checkpoint after every eighth, killed ten times while writing one.

After each kill the run is resumed. At its end it is compared, to the bit, with an uninterrupted run:
weights, optimizer, schedulers, λ, random state, and logged training scalars.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch

from mmdet_sssd.runs import AtomicLocalBackend, is_whole

from ..tools.run_comparison import assert_equal_states, scalars
from ..tools.test_runs import FASTER_RCNN, ROOT

RETINANET = """
_base_ = ['{root}/configs/demo/sssd_retinanet_r18-small_own-data.py']
default_hooks = dict(checkpoint=dict())
train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'RandomFlip']
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False)
"""
DETECTORS = {'retinanet': RETINANET, 'faster_rcnn': FASTER_RCNN}
SCHEDULE = """
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters={iters}, val_interval={iters} // 2)
train_dataloader['sampler'] = dict(_delete_=True, type='InfiniteSampler', shuffle=True)
train_dataloader['batch_sampler'] = None
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, milestones=[{iters} * 8 // 12, {iters} * 32 // 36])]
default_hooks['checkpoint'].update(
    by_epoch=False, interval={interval}, max_keep_ckpts=2, save_best='coco/bbox_mAP')
default_hooks['logger'] = dict(interval=1)
log_processor = dict(by_epoch=False)
"""
PARTS = {  # iterations, iterations between checkpoints, kills
    'random': (2000, 50, 3),
    'writing': (240, 8, 10),
}
COMPARED = (
    'state_dict',
    'optimizer',
    'param_schedulers',
    'adaptive_distill_coef.distill',
    'random_state',
)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder for the runs; created if needed')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--detectors', nargs='+', choices=DETECTORS, default=list(DETECTORS))
    args = parser.parse_args()
    for part in args.parts:
        for detector in args.detectors:
            study(args.out.resolve() / part / detector, detector, part)


def study(folder: Path, detector: str, part: str) -> None:
    """Do an uninterrupted run and one that is killed, compare them, and print the result."""
    iters, interval, num_kills = PARTS[part]
    config = folder / 'config.py'
    folder.mkdir(parents=True, exist_ok=True)
    bases = {name: ROOT / f'configs/_base_/{name}.py' for name in ('own_data', 'distiller')}
    schedule = SCHEDULE.format(iters=iters, interval=interval)
    config.write_text(DETECTORS[detector].format(root=ROOT, **bases) + schedule)
    if not (folder / f'whole/iter_{iters}.pth').exists():
        shutil.rmtree(folder / 'whole', ignore_errors=True)  # an unfinished one
        run(config, folder / 'whole')
    moments = folder / 'kills.json'
    kills = json.loads(moments.read_text()) if moments.exists() else []
    while len(kills) < num_kills:
        rng = random.Random(f'{detector} {part} {len(kills)}')
        moment = random_moment if part == 'random' else moment_of_writing
        kills.append(run(config, folder / 'killed', moment(rng, len(kills))))
        moments.write_text(json.dumps(kills))
    if not (folder / f'killed/iter_{iters}.pth').exists():
        run(config, folder / 'killed')
    print(f'\n{detector}, {iters} iterations, {part}:')
    for number, kill in enumerate(kills, 1):
        print(f'  kill {number}: ' + ', '.join(f'{key} {value}' for key, value in kill.items()))
    print(f'  resumed from: {", ".join(resumed_from(folder / "killed"))}')
    print(f'  {compare(folder / "killed", folder / "whole", iters)}', flush=True)


Moment = Callable[[Path, float], bool]
"""Tells, from a run's folder and the time when the present process started, whether to kill it."""


def run(config: Path, work_dir: Path, moment: Moment | None = None) -> dict:
    """Train or resume a run until its end, or until a given moment.

    Returns:
        The state after the kill: the last logged iteration, the file that was being written, and its
        size.
    """
    work_dir.mkdir(exist_ok=True)
    started = time.time()
    command = [sys.executable, 'tools/train.py', config, '--work-dir', work_dir, '--resume']
    env = {'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    with open(work_dir.with_suffix('.log'), 'a', encoding='utf-8') as log:
        process = subprocess.Popen(
            command, env=os.environ | env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            if moment is not None and moment(work_dir, started):
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.001)
    expected = 0 if moment is None else -signal.SIGKILL
    if process.returncode != expected:
        sys.exit(f'the run ended with {process.returncode}, see {log.name}')
    return {
        'after iteration': last_logged(work_dir, started),
        'while writing': ', '.join(
            f'{path.name} ({path.stat().st_size} bytes, {"" if is_whole(str(path)) else "not "}whole)'
            for path in leftovers(work_dir)
        )
        or 'nothing',
    }


def random_moment(rng: random.Random, number: int) -> Moment:
    """A moment in the kill's third of the run, soon after the log of a random iteration."""
    iters, _, num_kills = PARTS['random']
    first = int(rng.uniform(number, number + 1) * iters / num_kills)
    delay = rng.uniform(0, 5)

    def has_come(work_dir: Path, started: float) -> bool:
        if last_logged(work_dir, started) < first:
            time.sleep(0.1)
            return False
        time.sleep(delay)
        return True

    return has_come


def moment_of_writing(rng: random.Random, number: int) -> Moment:
    """A moment when a checkpoint's temporary file has a random fraction of its final size."""
    part = rng.random()
    count = rng.randint(1, 3)  # how many files are begun before and with it
    begun = set()

    def has_come(work_dir: Path, started: float) -> bool:
        whole = max((size_and_time(x)[0] for x in work_dir.glob('iter_*.pth')), default=10**7)
        for path in leftovers(work_dir):
            size, changed = size_and_time(path)
            if changed > started and '.pth' in path.suffixes:
                begun.add(path)
                if len(begun) >= count and size >= part * whole:
                    return True
        return False

    return has_come


def leftovers(work_dir: Path) -> list[Path]:
    return list(work_dir.glob(f'*{AtomicLocalBackend.SUFFIX}'))


def size_and_time(path: Path) -> tuple[int, float]:
    """Size in bytes and modification time of a file; zeros if it is gone."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_size, stat.st_mtime


def last_logged(work_dir: Path, started: float) -> int:
    """The last iteration in the current run's log; 0 without any."""
    for file in work_dir.glob('*/vis_data/scalars.json'):
        if file.stat().st_mtime > started:
            return max(map(int, re.findall(r'"step": (\d+)', file.read_text())), default=0)
    return 0


def resumed_from(work_dir: Path) -> list[str]:
    log = work_dir.with_suffix('.log').read_text(encoding='utf-8')
    found = re.findall(r'Resuming from \S*/(\w+)\.pth|(starts from the beginning)', log)
    return [checkpoint or beginning for checkpoint, beginning in found]


def compare(ours: Path, expected: Path, iters: int) -> str:
    """Say whether two runs are equal."""
    x, y = (
        torch.load(folder / f'iter_{iters}.pth', weights_only=False) for folder in (ours, expected)
    )
    try:
        for key in COMPARED:
            assert_equal_states(x[key], y[key], key)
        assert len(scalars(expected)) == iters
        assert scalars(ours) == scalars(expected), 'scalars'
    except AssertionError as difference:
        return f'DIFFERENT: {difference}'
    return f'equal to the bit: {", ".join(COMPARED)}, {iters} rows of scalars'


if __name__ == '__main__':
    main()
