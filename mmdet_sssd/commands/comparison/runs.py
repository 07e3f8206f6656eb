"""Trains and evaluates cells, each in a process of its own, several at a time."""

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from ...checkpoints import AtomicLocalBackend
from ...errors import ConfigError
from ...version import __version__
from .cells import Cell, check_metrics
from .logs import read_validations
from .metrics import main_metric
from .results import CellResult
from .schedule import length

TOOLS = Path(__file__).parents[2] / '.mim/tools'
VERSIONS = {'mmdet_sssd': __version__, 'torch': torch.__version__}
GRACE = 20  # seconds that a process has to end by itself
POLL = 1.0  # seconds between looks at the running cells


@dataclass(frozen=True)
class Failure:
    """A cell that could not be finished: why, and what its processes printed."""

    cell: Cell
    reason: str

    def __str__(self) -> str:
        return f'{self.cell}: {self.reason} (log: {self.cell.log})'


class _Stopped(Exception):
    """The whole comparison is being stopped."""


class CellRunner:
    """Runs cells, and stops what it started when it is stopped.

    Args:
        jobs: How many cells run at a time; on GPUs one each, in turn.
        test: Whether to evaluate the last checkpoints on the test data too.
        keep_checkpoints: Whether the last checkpoint of a finished cell stays.
        tools: Folder of ``train.py`` and ``test.py``.
    """

    def __init__(
        self,
        jobs: int = 1,
        test: bool = False,
        keep_checkpoints: bool = True,
        tools: Path = TOOLS,
    ) -> None:
        self.jobs = jobs
        self.test = test
        self.keep_checkpoints = keep_checkpoints
        self.tools = tools
        self.processes: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        self.stopping = False
        self.slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for environment in slot_environments(jobs):
            self.slots.put(environment)

    def is_done(self, cell: Cell) -> bool:
        """Tell whether a cell has all the results that are asked for."""
        result = cell.result
        return result is not None and (not self.test or 'test' in result.metrics)

    def run(
        self,
        cells: Sequence[tuple[Cell, Config]],
        on_change: Callable[[list[Cell], list[Cell], list[Failure]], None],
    ) -> list[Failure]:
        """Run cells, with their arms' configs, and give those that failed.

        Args:
            cells: What to run; cells that are done are left out.
            on_change: Called about once a second with the cells that are running, those that are
                finished, and those that failed.
        """
        failures: list[Failure] = []
        running: list[Cell] = []
        finished: list[Cell] = []

        def run_one(cell: Cell, cfg: Config) -> None:
            environment = self.slots.get()
            running.append(cell)
            try:
                self._run_cell(cell, cfg, environment)
                finished.append(cell)
            except (ConfigError, OSError) as error:
                failures.append(Failure(cell, str(error)))
            finally:
                running.remove(cell)
                self.slots.put(environment)

        with ThreadPoolExecutor(self.jobs) as pool:
            tasks = [pool.submit(run_one, *x) for x in cells if not self.is_done(x[0])]
            unfinished = tasks
            try:
                while unfinished:
                    unfinished = wait(tasks, POLL).not_done
                    on_change(list(running), list(finished), list(failures))
                    _raise_unexpected(tasks)
            finally:
                self._stop(tasks)
        return failures

    def dry_run(self, cell: Cell, cfg: Config) -> None:
        """Rehearse a cell.

        Raises:
            ConfigError: if it could not be trained; the message is the rehearsal's.
        """
        config = self._write_config(cell, cfg)
        self._tool('train', [config, '--work-dir', cell.folder, '--dry-run'], cell, {})

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
        self._process('step_times', arguments, log, slot_environments(self.jobs)[0])

    def _run_cell(self, cell: Cell, cfg: Config, environment: dict[str, str]) -> None:
        result = cell.result
        if result is None:
            result = self._train(cell, cfg, environment)
            result.write(cell.result_file)
        if self.test and 'test' not in result.metrics:
            if cell.checkpoint is None:
                raise ConfigError(
                    'its checkpoint is gone, so it cannot be tested; remove '
                    f'{cell.result_file}, and it from {cell.results.file}, to train it again'
                )
            result.metrics['test'] = self._evaluate(cell, cfg, 'test', environment)
            result.write(cell.result_file)
        if not self.keep_checkpoints:
            for path in (*cell.folder.glob('*.pth'), cell.folder / 'last_checkpoint'):
                path.unlink(missing_ok=True)

    def _train(self, cell: Cell, cfg: Config, environment: dict[str, str]) -> CellResult:
        config = self._write_config(cell, cfg)
        resume = ['--resume'] if any(cell.folder.glob('*.pth')) else []
        self._tool('train', [config, '--work-dir', cell.folder, *resume], cell, environment)
        unit, count = length(cfg)
        validations = read_validations(cell.folder)
        metrics = validations.get(count) or self._evaluate(cell, cfg, 'val', environment)
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

    def _evaluate(
        self, cell: Cell, cfg: Config, split: str, environment: dict[str, str]
    ) -> dict[str, float]:
        """Evaluate the last checkpoint of a cell with stock mmdet's test."""
        cfg = cell.config(cfg)
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'test_{part}'] = cfg[f'{split}_{part}']
        config, folder = cell.folder / f'{split}.py', cell.folder / split
        AtomicLocalBackend().put_text(cfg.pretty_text, str(config))
        shutil.rmtree(folder, ignore_errors=True)
        self._tool('test', [config, cell.checkpoint, '--work-dir', folder], cell, environment)
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

    def _tool(
        self, name: str, args: Sequence[Any], cell: Cell, environment: dict[str, str]
    ) -> None:
        self._process(name, [self.tools / f'{name}.py', *args], cell.log, environment)

    def _process(
        self, name: str, args: Sequence[Any], log: Path, environment: dict[str, str]
    ) -> None:
        """Run a Python program to its end."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, 'ab') as output:
            with self.lock:
                if self.stopping:
                    raise _Stopped
                process = subprocess.Popen(
                    [sys.executable, *map(str, args)],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    close_fds=False,  # the lock of the work directory is theirs too
                )
                self.processes.add(process)
            try:
                code = process.wait()
            except KeyboardInterrupt:  # in the main thread; cells are waited for in others
                process.terminate()
                raise
        with self.lock:
            self.processes.discard(process)
            if self.stopping:
                raise _Stopped
        if code:
            raise ConfigError(_last_words(log, name, code))

    def _stop(self, tasks: list[Future]) -> None:
        """Stop all processes, if there are any, and let none start."""
        for task in tasks:
            task.cancel()
        with self.lock:
            self.stopping = any(not task.done() for task in tasks)
            processes = list(self.processes)
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def slot_environments(jobs: int) -> list[dict[str, str]]:
    """Say what each of several processes at a time gets: a GPU in turn, or its share of the cores."""
    if jobs == 1:
        return [{}]
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    gpus = given.split(',') if given else [str(i) for i in range(torch.cuda.device_count())]
    if torch.cuda.is_available() and gpus:
        return [{'CUDA_VISIBLE_DEVICES': gpus[i % len(gpus)]} for i in range(jobs)]
    threads = os.environ.get('OMP_NUM_THREADS') or str(max(1, (os.cpu_count() or 1) // jobs))
    return [{'OMP_NUM_THREADS': threads}] * jobs


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


def _raise_unexpected(tasks: list[Future]) -> None:
    """Raise an exception that is the program's own fault."""
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error
