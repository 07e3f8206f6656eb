"""Submits the jobs of a comparison to Slurm."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import SlurmInfoWatcher

from ...errors import ConfigError

MANY = 1000  # times that a job may run out of time


def check_slurm() -> None:
    """Raise a ConfigError if this machine cannot submit jobs."""
    if not shutil.which('sbatch'):
        raise ConfigError(
            '--slurm: found no sbatch on this machine; run it on a machine that submits jobs, or '
            'without --slurm'
        )


class QueueWatcher(SlurmInfoWatcher):
    """Asks Slurm's queue which jobs have ended.

    submitit asks ``sacct``, which needs accounting. Not every cluster has it, and without it a job
    that ended without a result would be waited for forever.
    """

    def _make_command(self) -> list[str] | None:
        if self._registered == self._finished:
            return None
        return ['squeue', '--me', '--array', '--noheader', '--format=%i']

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Read the ids of the jobs in the queue; the others have ended."""
        queued = set((string if isinstance(string, str) else string.decode()).split())
        return {x: {'State': 'RUNNING' if x in queued else 'COMPLETED'} for x in self._registered}


submitit.SlurmJob.watcher = QueueWatcher()  # the one class that submitit's executor makes jobs of


def slurm_executor(folder: Path, options: Mapping[str, Any]) -> submitit.SlurmExecutor:
    """Make an executor whose jobs are queued again when they run out of time."""
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MANY)
    known = executor._valid_parameters()
    executor.update_parameters(
        **{'job_name': 'compare', **{k: v for k, v in options.items() if k in known}},
        stderr_to_stdout=True,
        additional_parameters={k: v for k, v in options.items() if k not in known},
    )
    return executor
