from mmdet_sssd.commands.comparison import progress
from mmdet_sssd.commands.comparison.jobs import Failure
from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.comparison.runs import Run


def test_what_starts_and_ends_is_printed_once_with_the_time_left(tmp_path, capsys, monkeypatch):
    now = iter([0.0, 20.0, 60.0])
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(now))
    runs = [Run('sssd', seed, tmp_path, ResultsFolder(tmp_path)) for seed in range(3)]
    shown = progress.Progress(3)
    shown.update(runs[:1], [], [])
    shown.update(runs[1:2], runs[:1], [])
    shown.update([], [], [Failure(runs[1], 'x')])  # of another round: what was done stays so
    shown.update([], runs[:1], [])
    lines = [line.split(' ', 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        'sssd seed 0: started',
        'sssd seed 1: started',
        'sssd seed 0: done; 1/3, about 0:00:40 left',
        'sssd seed 1: failed; 2/3, about 0:00:30 left',
    ]
