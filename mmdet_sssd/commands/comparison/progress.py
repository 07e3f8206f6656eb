"""Shows the progress of a comparison: live in a terminal, line by line elsewhere."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .jobs import Failure
from .logs import read_progress
from .runs import Run

ROW_KEYS = {'epoch': 'epoch', 'iteration': 'step'}  # in mmengine's log; epochs are counted from 1
DAY = 24 * 3600.0


class ProgressDisplay:
    """Follows the runs of a comparison; a context.

    Args:
        num_runs: Number of runs to train.
        lengths: Length of each arm's runs: unit (``'epoch'`` or ``'iteration'``) and count.
        console: Where to print.
    """

    def __init__(
        self, num_runs: int, lengths: Mapping[str, tuple[str, int]], console: Console | None = None
    ) -> None:
        self.lengths = lengths
        self.console = console or Console()
        self.tasks: dict[Run, int] = {}
        self.over: set[Run] = set()
        self.bars = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.fields[state]}'),
            console=self.console,
            disable=not self.console.is_terminal or num_runs == 0,
            speed_estimate_period=DAY,
        )
        self.all_runs = self.bars.add_task('all runs', total=num_runs, state='')

    def __enter__(self) -> 'ProgressDisplay':
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def update(
        self, running: Sequence[Run], finished: Sequence[Run], failures: Sequence[Failure]
    ) -> None:
        """Show the current state; runs that are over need to be listed only once."""
        for run in set(self.tasks) - set(running):
            self.bars.remove_task(self.tasks.pop(run))
        fractions = [self._show(run) for run in running]
        over = {**dict.fromkeys(finished, 'done'), **{x.run: 'failed' for x in failures}}
        news = {run: outcome for run, outcome in over.items() if run not in self.over}
        self.over.update(news)
        self.bars.update(self.all_runs, completed=len(self.over) + sum(fractions))
        task = self.bars.tasks[0]
        state = f'{len(self.over)}/{task.total}'
        if task.time_remaining:
            state += f', about {timedelta(seconds=round(task.time_remaining))} left'
        self.bars.update(self.all_runs, state=state)
        for run, outcome in news.items():
            self._say(f'{run}: {outcome}; {state}')

    def _show(self, run: Run) -> float:
        """Show a run that is training; gives the fraction of it that is done."""
        if run not in self.tasks:
            self.tasks[run] = self.bars.add_task(f'  {run}', total=1.0, state='')
            self._say(f'{run}: {"resumed" if run.checkpoint else "started"}')
        unit, count = self.lengths[run.arm]
        position = read_progress(run.folder).get(ROW_KEYS[unit], 0)
        done = min(1.0, max(0.0, position - (unit == 'epoch') / 2) / count)
        self.bars.update(self.tasks[run], completed=done, state=f'{unit} {position}/{count}')
        return done

    def _say(self, message: str) -> None:
        if not self.console.is_terminal:
            self.console.print(f'{time.strftime("%H:%M:%S")} {message}', highlight=False)
