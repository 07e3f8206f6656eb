"""Runs the cells of a comparison as jobs: processes of this machine, or jobs of Slurm."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import submitit
import torch
from mmengine.config import Config
from submitit.core.utils import FailedJobError

from ...errors import ConfigError
from .cells import Cell
from .slurm import SlurmExecutor, check_slurm
from .training import Job, Training

POLL = 1.0  # seconds between looks at the running cells
FOREVER = 60 * 24 * 365  # minutes; submitit would end jobs of this machine after two
MANY = 1000  # jobs at a time on a cluster


@dataclass(frozen=True)
class Failure:
    """A cell that could not be finished: why, and what its processes printed."""

    cell: Cell
    reason: str

    def __str__(self) -> str:
        return f'{self.cell}: {self.reason} (log: {self.cell.log})'


class CellRunner:
    """Runs cells, and stops what it started when it is stopped.

    Args:
        folder: Where submitit keeps its jobs.
        training: How cells are trained.
        slurm: Options of ``sbatch``, in submitit's words where it has some; None for jobs on this
            machine.
        jobs: How many run at a time, on GPUs of this machine one each, in turn; by default one here,
            and on a cluster all that it lets run.

    Raises:
        ConfigError: if this machine cannot submit jobs to Slurm.
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        slurm: Mapping[str, Any] | None = None,
        jobs: int | None = None,
    ) -> None:
        self.folder = folder
        self.training = training
        self.slurm = slurm
        if slurm is not None:
            check_slurm()
        self.slots = slot_environments(jobs or 1) if slurm is None else [{}] * (jobs or MANY)

    def run(
        self,
        cells: Sequence[tuple[Cell, Config]],
        on_change: Callable[[list[Cell], list[Cell], list[Failure]], None],
    ) -> list[Failure]:
        """Run cells, with their arms' configs, and give those that failed.

        A cell that others are training is waited for.

        Args:
            cells: What to run; cells that are done are left out.
            on_change: Called about once a second with the cells that are running, those that are
                finished, and those that failed.
        """
        todo = {cell: cfg for cell, cfg in cells if not self.training.is_done(cell)}
        running: dict[Cell, tuple[int, submitit.Job]] = {}
        finished: list[Cell] = []
        failures: list[Failure] = []
        try:
            while True:
                for cell in [x for x, (_, job) in running.items() if job.done()]:
                    _, job = running.pop(cell)
                    if reason := _outcome(job):
                        failures.append(Failure(cell, reason))
                        del todo[cell]
                self._start(todo, running, finished)
                begun = [x for x, (_, job) in running.items() if job.paths.stdout.exists()]
                on_change(begun, list(finished), list(failures))
                if not todo:
                    return failures
                time.sleep(POLL)
        finally:
            self._stop([job for _, job in running.values()])

    def dry_run(self, cell: Cell, cfg: Config) -> None:
        """Rehearse a cell in a job.

        Raises:
            ConfigError: if it could not be trained; the message is the rehearsal's.
        """
        self._wait_for(partial(self._training(0).rehearse, cell, cfg))

    def measure(self, configs: Sequence[Path], out: Path, log: Path) -> None:
        """Measure the training steps of config files in a job, see :meth:`.Training.measure`."""
        self._wait_for(partial(self._training(0).measure, configs, out, log))

    def _start(
        self,
        todo: dict[Cell, Config],
        running: dict[Cell, tuple[int, submitit.Job]],
        finished: list[Cell],
    ) -> None:
        """Start cells in the free slots, and move what is done from those to do to the finished."""
        busy = {slot for slot, _ in running.values()}
        free = [slot for slot in range(len(self.slots)) if slot not in busy]
        chosen: dict[Cell, int] = {}
        for cell in [x for x in todo if x not in running]:
            if len(chosen) == len(free):
                break
            if self.training.is_done(cell):
                finished.append(cell)
                del todo[cell]
            elif cell.is_free():
                chosen[cell] = free[len(chosen)]
        jobs = self._submit(
            [partial(self._training(slot).run, x, todo[x]) for x, slot in chosen.items()]
        )
        running.update(zip(chosen, zip(chosen.values(), jobs, strict=True), strict=True))

    def _training(self, slot: int) -> Training:
        return replace(self.training, environment=self.slots[slot])

    def _wait_for(self, work: Callable[[], None]) -> None:
        """Have something done in a job."""
        (job,) = self._submit([work])
        try:
            while not job.done():
                time.sleep(POLL)
            if reason := _outcome(job):
                raise ConfigError(reason)
        finally:
            self._stop([job])

    def _submit(self, works: Sequence[Callable[[], None]]) -> list[submitit.Job]:
        if not works:
            return []
        try:
            executor = self._executor()
            with _unheard_by_jobs(), executor.batch():
                return [executor.submit(Job(work)) for work in works]
        except FailedJobError as error:  # by sbatch
            raise ConfigError(f'--executor slurm: {str(error).splitlines()[-1]}') from error

    def _executor(self) -> submitit.Executor:
        if self.slurm is not None:
            return SlurmExecutor(self.folder, self.slurm)
        executor = submitit.LocalExecutor(self.folder)
        executor.update_parameters(timeout_min=FOREVER, stderr_to_stdout=True)
        return executor

    def _stop(self, jobs: Sequence[submitit.Job]) -> None:
        """End jobs that have not ended; those of this machine save, and are waited for."""
        if self.slurm is not None:
            for job in jobs:
                if not job.done():
                    job.cancel(check=False)
            return
        while unfinished := [job for job in jobs if not job.done()]:
            for job in unfinished:
                os.kill(int(job.job_id), signal.SIGTERM)  # cancel() would give it a second to save
            time.sleep(POLL)


def _outcome(job: submitit.Job) -> str | None:
    """Say why a job that has ended did not do what it was to do; None if it did.

    Raises:
        FailedJobError: with the traceback, if that is the program's own fault.
    """
    error = job.exception()
    if isinstance(error, FailedJobError):
        raise error
    if error:
        return f'its job {job.job_id} was ended from outside; what it printed: {job.paths.stdout}'
    return job.result()


@contextmanager
def _unheard_by_jobs() -> Iterator[None]:
    """Let jobs that are started ignore what a terminal sends to all; they are stopped by signals."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def slot_environments(jobs: int) -> list[dict[str, str]]:
    """Say what each of several processes at a time gets: a GPU in turn, or its share of the cores."""
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    gpus = given.split(',') if given else [str(i) for i in range(torch.cuda.device_count())]
    if torch.cuda.is_available() and gpus:
        return [{'CUDA_VISIBLE_DEVICES': gpus[i % len(gpus)]} for i in range(jobs)]
    if jobs == 1:
        return [{}]
    threads = os.environ.get('OMP_NUM_THREADS') or str(max(1, (os.cpu_count() or 1) // jobs))
    return [{'OMP_NUM_THREADS': threads}] * jobs
