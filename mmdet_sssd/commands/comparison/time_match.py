"""Gives an arm as much training time as another: measures the steps of both."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from ...checkpoints import AtomicLocalBackend
from ..step_times import WARM_UP, StepTimes, read_step_times
from .cells import changes_since
from .schedule import length

FILE = 'step_times.json'


def matched_step_times(
    measure: Callable[[Sequence[Path], Path, Path], None],
    configs: Mapping[str, Config],
    folder: Path,
    results: Path,
) -> dict[str, StepTimes]:
    """Measure the steps of an arm and of the arm it is matched to, or read what was measured before.

    Args:
        measure: Measures config files into a file, with a log.
        configs: The configs of the two arms.
        folder: Where they are written to.
        results: Folder of the arm's results, which keeps the times; they are taken anew if a config
            is another than the one in ``folder``.
    """
    files = {name: folder / f'{name}.py' for name in configs}
    out = results / FILE
    changed = any(changes_since(files[name], cfg, tested=False) for name, cfg in configs.items())
    if changed or not out.is_file():
        out.unlink(missing_ok=True)
        for name, cfg in configs.items():
            AtomicLocalBackend().put_text(cfg.pretty_text, str(files[name]))
        measure(list(files.values()), out, folder / 'output.log')
    return read_step_times(out)


def time_ratio(configs: Mapping[str, Config], times: Mapping[str, StepTimes]) -> float:
    """Say how many times as long the second config trains as the first: median step × iterations."""
    seconds = []
    for name, cfg in configs.items():
        unit, count = length(cfg)
        iterations = count * (times[name].epoch_length if unit == 'epoch' else 1)
        seconds.append(times[name].median * iterations)
    return round(seconds[1] / seconds[0], 2)


def match_note(results: Path) -> str | None:
    """Say how an arm's training time was matched; None if nothing was measured.

    Args:
        results: Folder of the arm's results.
    """
    if not (results / FILE).is_file():
        return None
    (arm, own), (rival, theirs) = read_step_times(results / FILE).items()
    return (
        f'{arm} was given the training time of {rival}, whose steps take '
        f'×{theirs.median / own.median:.2f} as long: {theirs.median:.3g} s beside {own.median:.3g} s, '
        f'medians of {len(own.seconds)} steps of each, taken in turn in one process on one batch, '
        f'after {WARM_UP} to warm up, without data loading ({own.device}).'
    )
