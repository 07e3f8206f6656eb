"""What a distilled step costs beside stock's, in time and memory: the benchmark command's numbers."""

import pytest

from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, run_benchmark

from . import DEVICE, ON_GPU, SHORT
from .test_training import SHOWN, config_of

MEMORY_GOAL = 1.5  # times stock's peak


@pytest.mark.parametrize('amp', [False, True] if ON_GPU else [False])
@pytest.mark.parametrize('name', SHOWN)
def test_ratios(name, amp, tmp_path, note):
    """Of steps of both arms in turn; 2 images of 800×1344 unless short."""
    options = BenchmarkOptions(
        config_of(name, tmp_path),
        arms=['baseline', 'paper'],
        shape=(64, 96) if SHORT else (800, 1344),
        device=DEVICE,
        amp=amp,
        steps=1 if SHORT else 10,
    )
    arms = run_benchmark(options)['arms']
    for arm, measured in arms.items():
        note(**{f'{arm}_seconds': measured['step_time']['median']})
        note(**{f'{arm}_mib': measured['peak_memory'] / 2**20})
    found = arms['paper']['ratios']
    note(**found)
    if not SHORT:  # weights and optimizer count, so the size matters
        assert found['memory'] <= MEMORY_GOAL
