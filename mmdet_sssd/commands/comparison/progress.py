"""Shows the progress of a comparison: live in a terminal, line by line elsewhere."""

import time
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .cells import Cell
from .logs import read_progress
from .runs import Failure

ROW_KEYS = {'epoch': 'epoch', 'iteration': 'step'}  # in mmengine's log; epochs are counted from 1


class ProgressDisplay:
    """Follows the cells of a comparison; a context.

    Args:
        num_cells: Number of cells to run.
        console: Where to print.

    Attributes:
        lengths: Length of each arm's runs, as unit (``'epoch'`` or ``'iteration'``) and count; the
            caller sets it before the arm runs.
    """

    def __init__(self, num_cells: int, console: Console | None = None) -> None:
        self.lengths: dict[str, tuple[str, int]] = {}
        self.num_cells = num_cells
        self.console = console or Console()
        self.started = time.monotonic()
        self.done_before: dict[Cell, float] = {}  # fraction when a cell was resumed
        self.over: set[Cell] = set()
        self.bars = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.fields[state]}'),
            console=self.console,
            disable=not self.console.is_terminal or num_cells == 0,
        )
        self.total = self.bars.add_task('all cells', total=num_cells, state='')
        self.tasks: dict[Cell, int] = {}

    def __enter__(self) -> 'ProgressDisplay':
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def update(
        self, running: Sequence[Cell], finished: Sequence[Cell], failures: Sequence[Failure]
    ) -> None:
        """Show the current state; cells that are over need to be listed only once."""
        rows = {cell: read_progress(cell.folder) for cell in running}
        fractions = {cell: self._fraction(cell, row) for cell, row in rows.items()}
        for cell in running:
            if cell not in self.done_before:
                self.done_before[cell] = fractions[cell] if cell.checkpoint else 0.0
                self._say(f'{cell}: {"resumed" if cell.checkpoint else "started"}')
        over = {**dict.fromkeys(finished, 'done'), **{x.cell: 'failed' for x in failures}}
        news = {cell: outcome for cell, outcome in over.items() if cell not in self.over}
        self.over.update(news)
        completed = len(self.over) + sum(fractions.values())
        state = f'{len(self.over)}/{self.num_cells}'
        state += self._eta(completed - sum(self.done_before.values()))
        for cell, outcome in news.items():
            self._say(f'{cell}: {outcome}; {state}')
        self.bars.update(self.total, completed=completed, state=state)
        self._show_running(rows, fractions)

    def _show_running(self, rows: dict[Cell, dict], fractions: dict[Cell, float]) -> None:
        for cell in set(self.tasks) - set(rows):
            self.bars.remove_task(self.tasks.pop(cell))
        for cell, row in rows.items():
            if cell not in self.tasks:
                self.tasks[cell] = self.bars.add_task(f'  {cell}', total=1.0, state='')
            unit, count = self.lengths[cell.arm]
            state = f'{unit} {row.get(ROW_KEYS[unit], 0)}/{count}'
            self.bars.update(self.tasks[cell], completed=fractions[cell], state=state)

    def _fraction(self, cell: Cell, row: dict[str, float]) -> float:
        unit, count = self.lengths[cell.arm]
        position = row.get(ROW_KEYS[unit], 0)
        return min(1.0, max(0.0, position - (unit == 'epoch') / 2) / count)

    def _eta(self, work: float) -> str:
        elapsed = time.monotonic() - self.started
        left = self.num_cells - sum(self.done_before.values()) - work
        if work <= 0 or left <= 0:
            return ''
        return f', about {timedelta(seconds=round(elapsed / work * left))} left'

    def _say(self, message: str) -> None:
        if not self.console.is_terminal:
            self.console.print(f'{time.strftime("%H:%M:%S")} {message}', highlight=False)
