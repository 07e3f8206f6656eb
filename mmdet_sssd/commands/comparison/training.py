"""What the jobs of a comparison do: train and evaluate a cell, by programs that can be preempted."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import submitit
import torch
from mmengine.config import Config

from ...checkpoints import AtomicLocalBackend
from ...errors import ConfigError
from ...hooks import PreemptionHook
from ...version import __version__
from .cells import Cell, check_metrics
from .logs import read_validations
from .metrics import main_metric
from .results import CellResult
from .schedule import length

TOOLS = Path(__file__).parents[2] / '.mim/tools'
VERSIONS = {'mmdet_sssd': __version__, 'torch': torch.__version__}
GRACE = 20  # seconds that a program has to save and end before a further signal kills it
POLL = 0.2  # seconds between looks at a program
PREEMPTION = signal.Signals['SIG' + submitit.JobEnvironment.USR_SIG]  # before a job's time is up


class Preempted(Exception):
    """A program was told to end, and did; it goes on when it is started again.

    Args:
        by: The signal that this process got; None if the program alone got one.
    """

    def __init__(self, by: int | None) -> None:
        super().__init__(by)
        self.by = by


@dataclass(frozen=True)
class Job:
    """What submitit runs in a process of its own, here or on a cluster.

    Attributes:
        work: What is done.
    """

    work: Callable[[], None]

    def __call__(self) -> str | None:
        """Do it.

        Returns:
            What the user has to mend; None if nothing.
        """
        try:
            self.work()
        except (ConfigError, OSError) as error:
            return str(error)
        except Preempted as preempted:
            if preempted.by != signal.SIGTERM:
                signal.raise_signal(PREEMPTION)  # submitit queues the job again
            if submitit.JobEnvironment().cluster == 'slurm':
                # Slurm cancels the job, or it queues it again. Both take until it ends the process:
                # a job that ended first would count as failed.
                while True:
                    time.sleep(POLL)
            sys.exit(PreemptionHook.EXIT_CODE)
        return None

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Tell submitit what a job that is queued again does: the same, from the last checkpoint."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Training:
    """How cells are trained.

    Attributes:
        test: Whether to evaluate the last checkpoints on the test data too.
        keep_checkpoints: Whether the last checkpoint of a finished cell stays.
        tools: Folder of ``train.py`` and ``test.py``.
        environment: What differs in the programs' environment.
    """

    test: bool = False
    keep_checkpoints: bool = True
    tools: Path = TOOLS
    environment: Mapping[str, str] = field(default_factory=dict)

    def is_done(self, cell: Cell) -> bool:
        """Tell whether a cell has all the results that are asked for."""
        result = cell.result
        return result is not None and (not self.test or 'test' in result.metrics)

    def run(self, cell: Cell, cfg: Config) -> None:
        """Train and evaluate a cell with its arm's config, unless that is done, or others are at it.

        Raises:
            ConfigError: if that fails.
            Preempted: if it is to go on later.
        """
        with cell.claimed() as is_ours:
            if not is_ours or self.is_done(cell):
                return
            result = cell.result
            if result is None:
                result = self._train(cell, cfg)
                result.write(cell.result_file)
            if self.test and 'test' not in result.metrics:
                if cell.checkpoint is None:
                    raise ConfigError(
                        'its checkpoint is gone, so it cannot be tested; remove '
                        f'{cell.result_file}, and it from {cell.results.file}, to train it again'
                    )
                result.metrics['test'] = self._evaluate(cell, cfg, 'test')
                result.write(cell.result_file)
            if not self.keep_checkpoints:
                for path in (*cell.folder.glob('*.pth'), cell.folder / 'last_checkpoint'):
                    path.unlink(missing_ok=True)

    def rehearse(self, cell: Cell, cfg: Config) -> None:
        """Rehearse a cell.

        Raises:
            ConfigError: if it could not be trained; the message is the rehearsal's.
        """
        config = self._write_config(cell, cfg)
        self._tool('train', [config, '--work-dir', cell.folder, '--dry-run'], cell)

    def measure(self, configs: Sequence[Path], out: Path, log: Path) -> None:
        """Measure the training steps of config files, with what a cell has of the machine.

        Args:
            configs: The files.
            out: Where :func:`~..step_times.write_step_times` writes to.
            log: What the process prints.

        Raises:
            ConfigError: if they cannot be trained.
        """
        arguments = ['-m', 'mmdet_sssd.commands.step_times', out, *configs]
        run_program('step_times', arguments, log, self.environment)

    def _train(self, cell: Cell, cfg: Config) -> CellResult:
        config = self._write_config(cell, cfg)
        resume = ['--resume'] if any(cell.folder.glob('*.pth')) else []
        self._tool('train', [config, '--work-dir', cell.folder, *resume], cell)
        unit, count = length(cfg)
        validations = read_validations(cell.folder)
        metrics = validations.get(count) or self._evaluate(cell, cfg, 'val')
        check_metrics(cell, metrics)
        main = main_metric(metrics)
        return CellResult(
            arm=cell.arm,
            seed=cell.seed,
            unit=unit,
            **read_costs(cell.checkpoint),
            versions=VERSIONS,
            metrics={'val': _numbers(metrics)},
            curve=[(step, round(100 * row[main], 3)) for step, row in sorted(validations.items())],
        )

    def _evaluate(self, cell: Cell, cfg: Config, split: str) -> dict[str, float]:
        """Evaluate the last checkpoint of a cell with stock mmdet's test."""
        if cell.checkpoint is None:
            raise ConfigError(
                f'it left no checkpoint in {cell.folder}; accepted: default_hooks.checkpoint.interval '
                'of as many epochs or iterations as are trained, or fewer'
            )
        cfg = cell.config(cfg)
        if split == 'val':  # by mmengine's test loop, which writes the metrics to a file
            cfg.test_cfg = dict(type='TestLoop', fp16=cfg.val_cfg.get('fp16', False))
            cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
        config, folder = cell.folder / f'{split}.py', cell.folder / split
        AtomicLocalBackend().put_text(cfg.pretty_text, str(config))
        shutil.rmtree(folder, ignore_errors=True)
        self._tool('test', [config, cell.checkpoint, '--work-dir', folder], cell)
        path = next(folder.glob('*/*.json'), None)
        if path is None:
            raise ConfigError(
                f'its last checkpoint finds nothing on the {split} data, which gives no metrics; train '
                'it longer, or lower the least score in its test_cfg'
            )
        metrics = json.loads(path.read_text(encoding='utf-8'))
        check_metrics(cell, metrics)
        return _numbers(metrics)

    def _write_config(self, cell: Cell, cfg: Config) -> Path:
        AtomicLocalBackend().put_text(cell.config(cfg).pretty_text, str(cell.config_file))
        return cell.config_file

    def _tool(self, name: str, args: Sequence[Any], cell: Cell) -> None:
        run_program(name, [self.tools / f'{name}.py', *args], cell.log, self.environment)


def run_program(name: str, args: Sequence[Any], log: Path, environment: Mapping[str, str]) -> None:
    """Run a Python program to its end; it gets the signals by which schedulers end jobs.

    Raises:
        ConfigError: if it fails; the message is the last line that it printed.
        Preempted: if there was such a signal.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'ab') as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            close_fds=False,  # the claim of the cell is its too
        )
    with _handing_on(process) as received:
        while (code := process.poll()) is None:
            time.sleep(POLL)
    if received or code == PreemptionHook.EXIT_CODE:
        raise Preempted(received[0] if received else None)
    if code:
        raise ConfigError(_last_words(log, name, code))


@contextmanager
def _handing_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Hand signals on to a process, and note them; kill it if it is slow, or not waited for."""
    received: list[int] = []
    started = math.inf

    def hand_on(number: int, _: Any) -> None:
        nonlocal started
        if not received:
            started = time.monotonic()
            process.send_signal(number)
        elif time.monotonic() > started + GRACE:
            process.kill()
        received.append(number)

    numbers = (signal.SIGTERM, PREEMPTION)
    handlers = [signal.signal(number, hand_on) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        process.kill()


def read_costs(checkpoint: Path) -> dict[str, Any]:
    """Read from a checkpoint what :class:`TrainingCostHook` noted.

    Returns:
        The fields of :class:`~.cells.CellResult` ``iterations``, ``train_seconds``, ``step_seconds``,
        ``peak_memory`` and ``device``.
    """
    content = torch.load(checkpoint, map_location='cpu', weights_only=False, mmap=True)
    scalars = content['message_hub']['log_scalars']
    times = scalars['train/time'].data[0]
    return {
        'device': content['message_hub']['runtime_info']['device'],
        'iterations': content['meta']['iter'],
        'train_seconds': round(float(times.sum()), 3),
        'step_seconds': round(float(np.median(times)), 6),
        'peak_memory': round(float(scalars['train/peak_memory'].data[0].max()), 1),
    }


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Keep what is a metric: mmengine logs times and counters beside them."""
    others = ('step', 'epoch', 'iter', 'time', 'data_time')
    return {k: v for k, v in metrics.items() if k not in others and isinstance(v, (int, float))}


def _last_words(log: Path, name: str, code: int) -> str:
    """Take what a failed process said last: the message of an error, or the exception."""
    lines = log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
    last = lines[-1] if lines else ''
    if code < 0:
        return f'{name} was killed by signal {-code}'
    return re.sub(r'^error: ', '', last) or f'{name} ended with exit code {code}'
