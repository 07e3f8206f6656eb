"""Pools comparisons: what to expect of an arm on your own pair of detector and data set."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...errors import ConfigError
from ...runs import AtomicLocalBackend
from .arms import BASELINE
from .report import NONE, difference_text, markdown_page, markdown_table, times_text
from .results import ResultsFolder
from .summary import SPLITS, TIME, Estimate, Estimates, cost_ratios, differences, estimate

AP_NAMES = ('AP', 'AP50', 'AP75')
NOTES = [
    'For each pair of detector and data set: the mean of the differences paired by seed, with its 95% '
    't-interval and the number of seeds.',
    "Over pairs: the mean of the pairs' means, each counted alike, with its 95% t-interval over pairs "
    'and their number. It says what to expect of a pair of your own, if these were drawn from the '
    'same lot.',
]

Pooled = Mapping[str, Estimates]
"""By arm and study (one detector on one data set): the differences to a reference arm, and the ratio
of the training times."""


def pool(
    folders: Sequence[Path],
    split: str,
    arms: Iterable[str] | None = None,
    reference: str = BASELINE,
) -> Pooled:
    """Pool the results on a split of studies, which are named as their folders.

    Without ``arms``, those that two studies or more share with the reference are pooled.

    Raises:
        ConfigError: if a folder has no results, or two have one name.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError(
            f'pool was given {", ".join(names)}; accepted: folders of different names'
        )
    found: dict[str, Estimates] = {}
    for folder in folders:
        results = ResultsFolder(folder).read()
        if not results:
            raise ConfigError(
                f'there are no results in {folder}; accepted: a folder with results of compare'
            )
        ratios = cost_ratios(results, split, reference)
        for arm, estimates in differences(results, split, reference).items():
            if estimates:
                study = {**estimates, TIME: ratios[arm][TIME]}
                found.setdefault(arm, {})[folder.name] = study
    chosen = [arm for arm, x in found.items() if len(x) > 1] if arms is None else arms
    return {arm: found[arm] for arm in chosen if arm in found}


def over_pairs(studies: Estimates, name: str = 'AP') -> Estimate:
    """Estimate the mean difference over pairs of detector and data set, taken as drawn at random.

    Each pair counts alike, however many seeds it has. The interval is Student's over the pairs'
    means, so it covers what varies from pair to pair.
    """
    return estimate([x[name].mean for x in studies.values() if name in x])


def write_pool(
    out: Path,
    folders: Sequence[Path],
    arms: Iterable[str] | None = None,
    references: Sequence[str] = (BASELINE,),
) -> str:
    """Write ``pool.md``, whose text is returned, into a folder.

    Raises:
        ConfigError: if there is nothing to pool.
    """
    parts = []
    for split, title in SPLITS.items():
        for reference in references:
            if pooled := pool(folders, split, arms, reference):
                parts += [f'## {title}: difference to {reference}', _table(pooled)]
    if not parts:
        raise ConfigError(
            f'no arm shares a seed with {" or ".join(references)} in two of '
            f'{", ".join(map(str, folders))}'
        )
    text = markdown_page(['# Pooled comparisons', *parts], NOTES)
    AtomicLocalBackend().put_text(text, str(out / 'pool.md'))
    return text


def _table(pooled: Pooled) -> str:
    arms = pooled.values()
    names = dict.fromkeys(name for studies in arms for name in studies)
    rows = [[name, *(_entry(studies.get(name)) for studies in arms)] for name in names]
    for name in AP_NAMES:
        rows.append([f'{name} over pairs', *(difference_text(over_pairs(x, name)) for x in arms)])
    return markdown_table(['Δ AP', *pooled], rows)


def _entry(study: dict[str, Estimate] | None) -> str:
    return f'{difference_text(study["AP"])}, {times_text(study[TIME])}' if study else NONE
