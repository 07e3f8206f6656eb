"""Prints the progress of a comparison: what starts and what is over."""

import time
from collections.abc import Sequence
from datetime import timedelta

from .jobs import Failure
from .runs import Run


class Progress:
    """Follows the runs of a comparison."""

    def __init__(self, num_runs: int) -> None:
        self.num_runs = num_runs
        self.started_at = time.monotonic()
        self.started: set[Run] = set()
        self.over: set[Run] = set()

    def update(
        self, running: Sequence[Run], finished: Sequence[Run], failures: Sequence[Failure]
    ) -> None:
        """Print what is new."""
        for run in running:
            if run not in self.started:
                self.started.add(run)
                self._say(f'{run}: {"resumed" if run.checkpoint else "started"}')
        over = {**dict.fromkeys(finished, 'done'), **{x.run: 'failed' for x in failures}}
        for run, outcome in over.items():
            if run not in self.over:
                self.over.add(run)
                elapsed = time.monotonic() - self.started_at
                left = elapsed / len(self.over) * (self.num_runs - len(self.over))
                about = f', about {timedelta(seconds=round(left))} left' if left else ''
                self._say(f'{run}: {outcome}; {len(self.over)}/{self.num_runs}{about}')

    def _say(self, message: str) -> None:
        print(f'{time.strftime("%H:%M:%S")} {message}', flush=True)
