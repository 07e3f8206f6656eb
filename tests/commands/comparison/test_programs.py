"""Programs get the signals of their jobs, and end by them."""

import os
import signal

import pytest

from mmdet_sssd.commands.comparison.programs import Preempted, run_program

PROGRAM = """
import os, signal, sys, time
received = []
signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
signal.signal(signal.SIGUSR2, lambda number, _: received.append(number))
for _ in range(3):
    os.kill({target}, signal.{name})
    time.sleep(0.1)
print(len(received))
sys.exit({code})
"""


@pytest.mark.parametrize(('name', 'code'), [('SIGTERM', 75), ('SIGUSR2', 0), ('SIGTERM', 1)])
def test_a_program_gets_the_signals_of_its_job(tmp_path, name, code):
    """A run that ends is preempted then, whatever it says: it goes on, if only to find out."""
    text = PROGRAM.format(code=code, target=os.getpid(), name=name)
    before = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGUSR2)]
    with pytest.raises(Preempted) as preempted:
        run_program('train', ['-c', text], tmp_path / 'log')
    assert preempted.value.by == getattr(signal, name)
    assert (tmp_path / 'log').read_text() == '1\n'  # a second one would end it before it has saved
    assert [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGUSR2)] == before


def test_a_program_that_got_a_signal_itself_is_preempted(tmp_path):
    text = PROGRAM.format(code=75, target='os.getpid()', name='SIGTERM')
    with pytest.raises(Preempted) as preempted:
        run_program('train', ['-c', text], tmp_path / 'log')
    assert preempted.value.by is None
