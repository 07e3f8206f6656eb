"""Programs get the signals of their jobs, and end by them."""

import os
import signal
import time

import pytest

from mmdet_sssd.commands.comparison import programs
from mmdet_sssd.commands.comparison.programs import Preempted, run_program

PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
signal.signal(signal.SIGUSR2, lambda *_: sys.exit({code}))
os.kill({target}, signal.{name})
for _ in range(600):
    time.sleep(0.1)
"""
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(600):
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.1)
"""


@pytest.mark.parametrize(('name', 'code'), [('SIGTERM', 75), ('SIGUSR2', 0), ('SIGTERM', 1)])
def test_a_program_gets_the_signals_of_its_job(tmp_path, name, code):
    """A run that ends is preempted then, whatever it says: it goes on, if only to find out."""
    text = PROGRAM.format(code=code, target=os.getpid(), name=name)
    before = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGUSR2)]
    with pytest.raises(Preempted) as preempted:
        run_program('train', ['-c', text], tmp_path / 'log', {})
    assert preempted.value.by == getattr(signal, name)
    assert [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGUSR2)] == before


def test_a_program_that_got_a_signal_itself_is_preempted(tmp_path):
    text = PROGRAM.format(code=75, target='os.getpid()', name='SIGTERM')
    with pytest.raises(Preempted) as preempted:
        run_program('train', ['-c', text], tmp_path / 'log', {})
    assert preempted.value.by is None


def test_a_program_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, 'GRACE', 0.5)
    started = time.monotonic()
    with pytest.raises(Preempted):
        run_program('train', ['-c', DEAF], tmp_path / 'log', {})
    assert time.monotonic() - started < 30
