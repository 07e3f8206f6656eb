"""Results without a training run."""

from mmdet_sssd.commands.comparison.report import comparison_report, write_numbers
from mmdet_sssd.commands.comparison.results import CellResult
from mmdet_sssd.commands.comparison.summary import summarize_all


def result(
    arm, seed, ap, *, seconds=60.0, step=None, memory=500.0, splits=('val',), classes=None, **sizes
):
    """A result whose metrics are given in percent, as CocoMetric names them."""
    metrics = {
        'coco/bbox_mAP': ap / 100,
        'coco/bbox_mAP_50': (ap + 30) / 100,
        **{f'coco/bbox_mAP_{size}': value for size, value in sizes.items()},
        **{f'coco/{name}_precision': value / 100 for name, value in (classes or {}).items()},
    }
    return CellResult(
        arm=arm,
        seed=seed,
        unit='epoch',
        iterations=100,
        train_seconds=seconds,
        peak_memory=memory,
        device='CPU',
        versions={},
        metrics=dict.fromkeys(splits, metrics),
        curve=[(1, ap / 2), (2, ap)],
        step_seconds=step,
    )


def results(**aps):
    """Results of arms by name, seeds from 0."""
    return {
        arm: {seed: result(arm, seed, ap) for seed, ap in enumerate(values)}
        for arm, values in aps.items()
    }


def write_report(folder, cells, against=()):
    """Write the tables of results, and give the Markdown."""
    summaries = summarize_all(cells, against)
    write_numbers(folder, cells, summaries)
    return comparison_report(cells, summaries).write(folder / 'report.md')
