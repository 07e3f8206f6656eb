"""Runs programs that can be preempted: they get the signals by which schedulers end jobs."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit

from ...errors import ConfigError
from ...runs import PreemptionHook

PREEMPTION = signal.Signals['SIG' + submitit.JobEnvironment.USR_SIG]  # before a job's time is up


class Preempted(Exception):
    """A program was told to end, and did; it goes on when it is started again.

    Args:
        by: The signal that this process got; None if the program alone got one.
    """

    def __init__(self, by: int | None) -> None:
        super().__init__(by)
        self.by = by


def run_program(name: str, args: Sequence[Any], log: Path) -> None:
    """Run a Python program to its end.

    Args:
        name: Its name, for errors.
        args: What follows ``python``.
        log: File that gets its output, after what is there.

    Raises:
        ConfigError: if it fails; the message is the last line that it printed.
        Preempted: if it was told to end.
    """
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        if not received:  # the next ones repeat it
            process.send_signal(number)
        received.append(number)

    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'ab') as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, args)], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with signals_handled(forward, signal.SIGTERM, PREEMPTION):
            code = process.wait()
    finally:
        process.kill()
    if received or code == PreemptionHook.EXIT_CODE:
        raise Preempted(received[0] if received else None)
    if code < 0:
        raise ConfigError(f'{name} was killed by signal {-code}')
    if code:
        lines = log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
        last = lines[-1].removeprefix('error: ') if lines else ''
        raise ConfigError(last or f'{name} ended with exit code {code}')


@contextmanager
def signals_handled(handler: Callable | signal.Handlers, *numbers: int) -> Iterator[None]:
    """Have signals handled in the context, and as before after it."""
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
