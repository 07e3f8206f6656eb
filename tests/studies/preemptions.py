"""Sends signals to training runs at random moments and checks whether they end like uninterrupted ones.

Run it from the root of the repository (a few minutes on one core):

    python -m tests.studies.preemptions work_dirs/preemptions --processes 1 --preemptions 20
    python -m tests.studies.preemptions work_dirs/preemptions --processes 2 --preemptions 5

The toy detector trains with random augmentation in worker processes, averaged weights, validation,
periodic and best checkpoints, in both loops. A signal is SIGTERM, SIGUSR1 or Ctrl-C, to one process or
to all and their workers, at any moment of training: during iterations, validations and the writing of
checkpoints. The run is resumed each time. At the end, its last checkpoint is compared, to the bit, with
that of an uninterrupted run.
"""

import os
import random
import shutil
import signal
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

from mmengine.hooks import Hook

from mmdet_sssd.runs import PreemptionHook, load_from_local

from ..processes.work import WRAPPER, join_group
from ..runs.test_preemption_hook import assert_equal_runs, make_runner
from ..runs.test_safe_checkpoint_hook import last_checkpoint
from ..toy_detector import ITERS_PER_EPOCH

EPOCHS = 40
FORK = get_context('fork')  # everything is imported already
LOOPS = {
    'epochs': dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS),
    'iterations': dict(
        type='IterBasedTrainLoop',
        max_iters=EPOCHS * ITERS_PER_EPOCH,
        val_interval=ITERS_PER_EPOCH,
    ),
}


class BeginHook(Hook):
    """Tells the study that the run handles signals."""

    priority = 'LOWEST'

    def __init__(self, has_begun) -> None:
        self.has_begun = has_begun

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.has_begun.set()

    before_val_iter = before_train_iter


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder for the runs; its content is removed')
    parser.add_argument('--processes', type=int, choices=(1, 2), default=1)
    parser.add_argument('--preemptions', type=int, default=20)
    parser.add_argument('--loops', nargs='+', choices=LOOPS, default=list(LOOPS))
    args = parser.parse_args()
    for loop in args.loops:
        folder = args.out.resolve() / f'{loop}_{args.processes}'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        study(folder, loop, args.processes, args.preemptions)


def study(folder: Path, loop: str, processes: int, preemptions: int) -> None:
    """Do an uninterrupted run and one that gets signals, compare them, and print the result."""
    rng = random.Random(f'{loop} {processes}')
    seconds = run(folder / 'whole', loop, processes)[1]
    iterations, kinds = [], Counter()
    while True:
        left = preemptions - len(iterations)
        delay = rng.uniform(0, seconds / preemptions) if left else None
        number = rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
        target = rng.choice([*range(processes), None])
        codes, _ = run(folder / 'preempted', loop, processes, delay, number, target)
        if set(codes) == {0}:
            break
        if set(codes) != {PreemptionHook.EXIT_CODE}:
            sys.exit(f'the processes ended with {codes}, see {folder}')
        saved = load_from_local(str(last_checkpoint(folder / 'preempted')))
        iterations.append(saved['meta']['iter'])
        kinds[number.name] += 1
        kinds['to all' if target is None else 'to one'] += 1
        kinds['in or before a validation'] += saved['meta']['validates_first']
        kinds['in mid-epoch'] += saved['meta']['iter'] % ITERS_PER_EPOCH > 0
    print(f'\n{loop}, {processes} process(es), {len(iterations)} preemptions:')
    print(f'  after iterations {", ".join(map(str, iterations))}')
    print(f'  {", ".join(f"{count} {kind}" for kind, count in kinds.items())}')
    try:
        assert_equal_runs(folder / 'preempted', folder / 'whole')
    except AssertionError as difference:
        sys.exit(f'  DIFFERENT: {difference}')
    print('  equal to the bit', flush=True)


def run(
    work_dir: Path,
    loop: str,
    processes: int,
    delay: float | None = None,
    number: int = signal.SIGTERM,
    target: int | None = None,
) -> tuple[list[int], float]:
    """Train or resume a run until its end or a signal.

    Returns:
        The processes' exit codes, and the time of training.
    """
    has_begun = [FORK.Event() for _ in range(processes)]
    resumes = work_dir.exists()
    group = str(work_dir.parent / f'group_{time.time()}')
    ranks = [
        FORK.Process(target=train, args=(work_dir, loop, rank, processes, group, resumes, event))
        for rank, event in enumerate(has_begun)
    ]
    for process in ranks:
        process.start()
    for event, process in zip(has_begun, ranks, strict=True):
        while not event.wait(1) and process.is_alive():
            pass
    started = time.monotonic()
    if delay is not None:
        ranks[0].join(delay)
        for process in ranks if target is None else [ranks[target]]:
            if process.is_alive():
                (os.killpg if target is None else os.kill)(process.pid, number)
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks], time.monotonic() - started


def train(
    work_dir: Path, loop: str, rank: int, processes: int, group: str, resumes: bool, has_begun
) -> None:
    os.setsid()  # its workers join its group
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(work_dir.with_suffix(f'.{rank}.log'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    settings = {}
    if processes > 1:
        join_group(rank, group)
        settings = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=WRAPPER))
    runner = make_runner(
        work_dir, loop, workers=2, resume=resumes, train_cfg=LOOPS[loop], **settings
    )
    runner.register_hook(BeginHook(has_begun), 'LOWEST')
    runner.train()


if __name__ == '__main__':
    main()
