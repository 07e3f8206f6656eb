"""Lines where there is no terminal, a live display where there is one."""

import io
import json

import pytest
from rich.console import Console

from mmdet_sssd.commands.comparison.cells import Cell
from mmdet_sssd.commands.comparison.progress import ProgressDisplay
from mmdet_sssd.commands.comparison.runs import Failure


@pytest.fixture
def cells(tmp_path):
    return [Cell('sssd', seed, tmp_path, tmp_path / 'results') for seed in range(3)]


def log(cell, epoch):
    path = cell.folder / 'run/vis_data/scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'loss': 1.0, 'epoch': epoch, 'iter': 1, 'step': 1}) + '\n')


def shown(cells, monkeypatch, **console):
    """What is shown of a cell that takes 10 s for 2 of 4 epochs, then is done; and one that fails."""
    clock = [0.0]
    monkeypatch.setattr('mmdet_sssd.commands.comparison.progress.time.monotonic', lambda: clock[0])
    out = io.StringIO()
    with ProgressDisplay(3, Console(file=out, width=100, **console)) as display:
        display.lengths = {'sssd': ('epoch', 4)}
        display.update(cells[:1], [], [])
        log(cells[0], 3)
        clock[0] = 10.0
        display.update(cells[:1], [], [])
        clock[0] = 20.0
        display.update(cells[1:2], cells[:1], [])
        display.update([], [], [Failure(cells[1], 'x')])  # of another round: what was done stays so
        display.bars.refresh()
    return out.getvalue()


def test_lines_without_a_terminal(cells, monkeypatch):
    lines = [line.split(' ', 1)[1] for line in shown(cells, monkeypatch).splitlines()]
    assert lines == [
        'sssd seed 0: started',
        'sssd seed 1: started',
        'sssd seed 0: done; 1/3, about 0:00:40 left',
        'sssd seed 1: failed; 2/3, about 0:00:10 left',
    ]


def test_a_terminal_shows_cells_and_their_epochs(cells, monkeypatch):
    text = shown(cells, monkeypatch, force_terminal=True)
    assert 'all cells' in text
    assert '2/3, about 0:00:10 left' in text
    assert 'started' not in text
