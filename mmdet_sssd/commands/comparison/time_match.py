"""Gives an arm as much training time as another: measures the steps of both."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from ...checkpoints import AtomicLocalBackend
from ..step_times import WARM_UP, StepTimes
from .cells import changes_since
from .results import ResultsFolder
from .schedule import length


def matched_step_times(
    measure: Callable[[Sequence[Path], Path, Path], None],
    configs: Mapping[str, Config],
    folder: Path,
    results: ResultsFolder,
) -> dict[str, StepTimes]:
    """Measure the steps of an arm and of the arm it is matched to, or read what was measured before.

    Args:
        measure: Measures config files into a file, with a log.
        configs: The configs of the two arms, by name, the one that is matched first.
        folder: Where they are written to.
        results: What keeps the times; they are taken anew if a config is another than the one in
            ``folder``.
    """
    files = {name: folder / f'{name}.py' for name in configs}
    arm = next(iter(configs))
    changed = any(changes_since(files[name], cfg, tested=False) for name, cfg in configs.items())
    if changed or results.step_times(arm) is None:
        results.step_times_file(arm).unlink(missing_ok=True)
        for name, cfg in configs.items():
            AtomicLocalBackend().put_text(cfg.pretty_text, str(files[name]))
        measure(list(files.values()), results.step_times_file(arm), folder / 'output.log')
    return results.step_times(arm)


def time_ratio(configs: Mapping[str, Config], times: Mapping[str, StepTimes]) -> float:
    """Say how many times as long the second config trains as the first: median step × iterations."""
    seconds = []
    for name, cfg in configs.items():
        unit, count = length(cfg)
        iterations = count * (times[name].epoch_length if unit == 'epoch' else 1)
        seconds.append(times[name].median * iterations)
    return round(seconds[1] / seconds[0], 2)


def match_note(times: Mapping[str, StepTimes]) -> str:
    """Say how an arm's training time was matched.

    Args:
        times: What was measured, of the arm and of the one that it is matched to.
    """
    (arm, own), (rival, theirs) = times.items()
    return (
        f'{arm} was given the training time of {rival}, whose steps take '
        f'×{theirs.median / own.median:.2f} as long: {theirs.median:.3g} s beside {own.median:.3g} s, '
        f'medians of {len(own.seconds)} steps of each, taken in turn in one process on one batch, '
        f'after {WARM_UP} to warm up, without data loading ({own.device}).'
    )
