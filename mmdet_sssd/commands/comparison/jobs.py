"""Does the work of a comparison in jobs: processes of this machine, or jobs of Slurm."""

import os
import signal
import sys
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

from ...errors import ConfigError, user_error
from ...runs import PreemptionHook
from .programs import PREEMPTION, Preempted
from .runs import Run
from .slurm import check_slurm, slurm_executor
from .training import Training

POLL = 1.0  # seconds between looks at the jobs
FOREVER = 60 * 24 * 365  # minutes; submitit would end jobs of this machine after two
MANY = 1000  # jobs at a time on a cluster


@dataclass(frozen=True)
class Work:
    """What submitit does in a process of its own, here or on a cluster.

    Attributes:
        do: What is done.
    """

    do: Callable[[], None]

    def __call__(self) -> str | None:
        """Do it.

        Returns:
            What the user has to mend; None if nothing.
        """
        try:
            self.do()
        except Preempted as preempted:
            if preempted.by != signal.SIGTERM:
                signal.raise_signal(PREEMPTION)  # submitit queues the job again
            if submitit.JobEnvironment().cluster == 'slurm':
                # Slurm cancels the job, or it queues it again. Both take until it ends the process:
                # a job that ended first would count as failed.
                while True:
                    time.sleep(POLL)
            sys.exit(PreemptionHook.EXIT_CODE)
        except Exception as error:
            if message := user_error(error) or (isinstance(error, OSError) and str(error)):
                return message
            raise
        return None

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Tell submitit what a job that is queued again does: the same, from the last checkpoint."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Failure:
    """A run that could not be finished: why, and what its processes printed."""

    run: Run
    reason: str

    def __str__(self) -> str:
        return f'{self.run}: {self.reason} (log: {self.run.log})'


class JobRunner:
    """Does work in jobs, and stops what it started when it is stopped.

    Args:
        folder: Where submitit keeps its jobs.
        training: How runs are trained.
        slurm: Options of ``sbatch``, see :func:`~.slurm.slurm_executor`; None for this machine.
        jobs: How many run at a time, on GPUs of this machine one each, in turn; None: one here, and
            on a cluster all that it lets run.
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

    def train(
        self,
        runs: Mapping[Run, Config],
        on_change: Callable[[list[Run], list[Run], list[Failure]], None],
    ) -> list[Failure]:
        """Train runs that are not finished, with their arms' configs, and give those that failed.

        A run that others are training is waited for. ``on_change`` is called about once a second with
        the runs that are training, that were found finished, and that failed.
        """
        todo = {run: cfg for run, cfg in runs.items() if not self.training.is_done(run)}
        free = list(self.slots)
        running: dict[Run, tuple[dict[str, str], submitit.Job]] = {}
        finished: list[Run] = []
        failures: list[Failure] = []
        try:
            while True:
                for run in [x for x, (_, job) in running.items() if job.done()]:
                    slot, job = running.pop(run)
                    free.append(slot)
                    if reason := _outcome(job):
                        failures.append(Failure(run, reason))
                        del todo[run]
                chosen = {}
                for run in [x for x in todo if x not in running]:
                    if not free:
                        break
                    if self.training.is_done(run):
                        finished.append(run)
                        del todo[run]
                    elif run.is_free():
                        chosen[run] = free.pop(0)
                jobs = self._submit([self._work(x, todo[x], slot) for x, slot in chosen.items()])
                running |= {x: (chosen[x], job) for x, job in zip(chosen, jobs, strict=True)}
                begun = [x for x, (_, job) in running.items() if job.paths.stdout.exists()]
                on_change(begun, list(finished), list(failures))
                if not todo:
                    return failures
                time.sleep(POLL)
        finally:
            self._stop([job for _, job in running.values()])

    def wait_for(self, do: Callable[[], None]) -> None:
        """Have something done in a job.

        Raises:
            ConfigError: if the user has to mend something; the message is the job's.
        """
        (job,) = self._submit([do])
        try:
            while not job.done():
                time.sleep(POLL)
            if reason := _outcome(job):
                raise ConfigError(reason)
        finally:
            self._stop([job])

    def _work(self, run: Run, cfg: Config, slot: dict[str, str]) -> Callable[[], None]:
        return partial(replace(self.training, environment=slot).train, run, cfg)

    def _submit(self, works: Sequence[Callable[[], None]]) -> list[submitit.Job]:
        if not works:
            return []
        try:
            executor = self._executor()
            with _ignoring_the_terminal(), executor.batch():
                return [executor.submit(Work(do)) for do in works]
        except FailedJobError as error:  # by sbatch
            raise ConfigError(f'--executor slurm: {str(error).splitlines()[-1]}') from error

    def _executor(self) -> submitit.Executor:
        if self.slurm is not None:
            return slurm_executor(self.folder, self.slurm)
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
def _ignoring_the_terminal() -> Iterator[None]:
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
