"""Runs programs that can be preempted: they get the signals by which schedulers end jobs."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'ab') as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    with _forwarding_signals(process) as received:
        code = process.wait()
    if received or code == PreemptionHook.EXIT_CODE:
        raise Preempted(received[0] if received else None)
    if code < 0:
        raise ConfigError(f'{name} was killed by signal {-code}')
    if code:
        lines = log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
        last = lines[-1].removeprefix('error: ') if lines else ''
        raise ConfigError(last or f'{name} ended with exit code {code}')


@contextmanager
def _forwarding_signals(process: subprocess.Popen) -> Iterator[list[int]]:
    """Forward the first signal to a process, and note it; kill the process if it is not waited for."""
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        if not received:  # the next ones repeat it
            process.send_signal(number)
        received.append(number)

    numbers = (signal.SIGTERM, PREEMPTION)
    handlers = [signal.signal(number, forward) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        process.kill()
