"""Does the work of a comparison in jobs: processes of this machine, or jobs of Slurm."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from submitit.core.utils import FailedJobError

from ...errors import ConfigError, user_error
from ...runs import PreemptionHook
from .programs import PREEMPTION, Preempted, signals_handled
from .runs import Run
from .slurm import check_slurm, slurm_executor

POLL = 1.0  # seconds between looks at the jobs
FOREVER = 60 * 24 * 365  # minutes; submitit would end jobs of this machine after two
MANY = 1000  # jobs at a time on a cluster

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Work:
    """What submitit does in a process of its own, here or on a cluster.

    Attributes:
        do: What is done.
        environment: What differs in its environment.
    """

    do: Callable[[], None]
    environment: Environment

    def __call__(self) -> str | None:
        """Do it.

        Returns:
            What the user has to mend; None if nothing.
        """
        os.environ.update(self.environment)
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
        slurm: Options of ``sbatch``, see :func:`~.slurm.slurm_executor`; None for this machine.
        jobs: How many run at a time, on GPUs of this machine one each, in turn; None: one here, and
            on a cluster all that it lets run.
    """

    def __init__(
        self, folder: Path, slurm: Mapping[str, Any] | None = None, jobs: int | None = None
    ) -> None:
        self.folder = folder
        self.slurm = slurm
        if slurm is not None:
            check_slurm()
        self.slots = slot_environments(jobs or 1) if slurm is None else [{}] * (jobs or MANY)

    def do(self, title: str, works: Mapping[Run, Callable[[], None]]) -> list[Failure]:
        """Do what is to be done for each run in a job of its own, in their order.

        Args:
            title: Names the work beside the bar that shows its progress.
            works: The work by run.

        Returns:
            What failed.

        Raises:
            FailedJobError: if the program is broken.
        """
        if not works:
            return []
        waiting, free = list(works), list(self.slots)
        running: dict[Run, tuple[submitit.Job, Environment]] = {}
        failures = []
        try:
            with _progress() as progress:
                task = progress.add_task(title, total=len(works))
                while waiting or running:
                    started = list(zip(waiting, free, strict=False))
                    del waiting[: len(started)], free[: len(started)]
                    jobs = self._submit([Work(works[run], slot) for run, slot in started])
                    for (run, slot), job in zip(started, jobs, strict=True):
                        running[run] = job, slot
                        progress.console.log(f'{run}: job {job.job_id}')
                    time.sleep(POLL)
                    for run in [run for run, (job, _) in running.items() if job.done()]:
                        job, slot = running.pop(run)
                        free.append(slot)
                        reason = _outcome(job)
                        failures += [Failure(run, reason)] if reason else []
                        outcome = f'failed, {reason}' if reason else 'done'
                        progress.console.log(f'{run}: {outcome}')
                        progress.advance(task)
        finally:
            self._stop([job for job, _ in running.values()])
        return failures

    def _submit(self, works: Sequence[Work]) -> list[submitit.Job]:
        if not works:
            return []
        try:
            executor = self._executor()
            # jobs are stopped by signals of their own, not by what a terminal sends to all
            ignored = signals_handled(signal.SIG_IGN, signal.SIGINT, signal.SIGHUP)
            with ignored, executor.batch():
                return [executor.submit(work) for work in works]
        except FailedJobError as error:  # by sbatch
            raise ConfigError(f'--slurm: {str(error).splitlines()[-1]}') from error

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
            for job in unfinished:  # again and again: submitit ignores it while it starts
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


def _progress() -> Progress:
    """Make a bar on the terminal, with the time that is left, and lines with the time of day."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(log_path=False, soft_wrap=True, markup=False, emoji=False)
    return Progress(
        TextColumn('{task.description}'),
        *columns,
        console=console,
        speed_estimate_period=math.inf,  # runs take long
    )


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
