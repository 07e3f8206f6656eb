"""Matches an arm's training time to another's, by the step times of both."""

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
    """Measure the step times of an arm and of the arm it is matched to, or read earlier ones.

    Args:
        measure: Measures config files and writes step times and a log to the two files.
        configs: The configs of the two arms, by name; the matched arm first.
        folder: Folder for these configs.
        results: Folder of the step times; they are measured again if a config in ``folder`` differs.
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
    """Compute how much longer the second config trains than the first: mean step × iterations."""
    iterations = []
    for name, cfg in configs.items():
        unit, count = length(cfg)
        iterations.append(count * (times[name].epoch_length if unit == 'epoch' else 1))
    own, reference = (times[name] for name in configs)
    return round(_step_ratio(own, reference) * iterations[1] / iterations[0], 2)


def _step_ratio(own: StepTimes, reference: StepTimes) -> float:
    """Compute how much longer the mean step takes; idle ones take as long as those of ``own``."""
    return (1 - reference.idle) * reference.median / own.median + reference.idle


def match_note(times: Mapping[str, StepTimes]) -> str:
    """Describe how an arm's training time was matched.

    Args:
        times: Step times of the matched arm and of its reference.
    """
    (arm, own), (reference, theirs) = times.items()
    idle = f' in {1 - theirs.idle:.0%} of its run, and as long in the rest' if theirs.idle else ''
    return (
        f'{arm} was given the training time of {reference}, whose mean step takes '
        f'×{_step_ratio(own, theirs):.2f} as long: {theirs.median:.3g} s beside {own.median:.3g} s'
        f'{idle}, medians of {len(own.seconds)} steps of each, taken in turn in one process on one '
        f'batch, after {WARM_UP} to warm up, without data loading ({own.device}).'
    )
