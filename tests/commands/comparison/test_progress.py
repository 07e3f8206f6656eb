"""Lines where there is no terminal, a live display where there is one."""

import io
import json

import pytest
from rich.console import Console

from mmdet_sssd.commands.comparison.jobs import Failure
from mmdet_sssd.commands.comparison.progress import ProgressDisplay
from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.comparison.runs import Run


@pytest.fixture
def runs(tmp_path):
    return [Run('sssd', seed, tmp_path, ResultsFolder(tmp_path)) for seed in range(3)]


def log(run, epoch):
    path = run.folder / 'run/vis_data/scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'loss': 1.0, 'epoch': epoch, 'iter': 1, 'step': 1}) + '\n')


def shown(runs, **console):
    """What is shown of a run whose epochs take 10 s, then is done; and one that fails."""
    now = [0.0]
    out = Console(file=io.StringIO(), width=100, get_time=lambda: now[0], **console)
    with ProgressDisplay(3, {'sssd': ('epoch', 4)}, out) as display:
        for now[0], epoch in ((10.0, 2), (20.0, 3), (30.0, 4)):
            log(runs[0], epoch)
            display.update(runs[:1], [], [])
        now[0] = 35.0
        display.update(runs[1:2], runs[:1], [])
        display.update([], [], [Failure(runs[1], 'x')])  # of another round: what was done stays so
        display.bars.refresh()
    return out.file.getvalue()


def test_lines_without_a_terminal(runs):
    lines = [line.split(' ', 1)[1] for line in shown(runs).splitlines()]
    assert lines == [
        'sssd seed 0: started',
        'sssd seed 1: started',
        'sssd seed 0: done; 1/3, about 0:01:20 left',
        'sssd seed 1: failed; 2/3, about 0:00:16 left',
    ]


def test_a_terminal_shows_runs_and_their_epochs(runs):
    text = shown(runs, force_terminal=True)
    assert 'all runs' in text
    assert '2/3, about' in text
    assert 'started' not in text
