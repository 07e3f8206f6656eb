"""What a distilled step costs beside stock's, in time and memory: the benchmark command's numbers."""

import io
from functools import partial
from typing import Any

from rich.console import Console

from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, run_benchmark

from .checks import Settings, Skipped, within
from .training import DETECTORS, config_of

MEMORY_GOAL = 1.5  # times stock's peak


def ratios(name: str, amp: bool, settings: Settings) -> dict[str, Any]:
    """Measure steps of both arms in turn; 2 images of 800×1344 unless short."""
    if amp and not settings.on_gpu:
        raise Skipped('what mixed precision costs on a CPU says nothing of a GPU')
    options = BenchmarkOptions(
        config_of(name, settings),
        arms=['baseline', 'paper'],
        shape=(64, 96) if settings.short else (800, 1344),
        device=settings.device,
        amp=amp,
        steps=1 if settings.short else 10,
        json=settings.out / f'benchmark_{name}{"_amp" if amp else ""}.json',
    )
    arms = run_benchmark(options, Console(file=io.StringIO()))['arms']
    found = arms['paper']['ratios']
    numbers = dict(
        stock_seconds=arms['baseline']['step_time']['median'],
        distilled_seconds=arms['paper']['step_time']['median'],
        time=found['time'],
        flops=found['flops'],
        stock_mib=arms['baseline']['peak_memory'] / 2**20,
        memory=found['memory'],
        too_noisy=found['too_noisy'],
    )
    if settings.on_gpu and not settings.short:  # weights and optimizer count, so the size matters
        within('the peak of memory over stock', found['memory'], MEMORY_GOAL, **numbers)
    return numbers


CHECKS = {
    f'{name}{"_amp" if amp else ""}': partial(ratios, name, amp)
    for amp in (False, True)
    for name in DETECTORS
}
