"""Branches of partly labelled batches, named as in mmdet's ``MultiBranch``."""

from functools import partial
from typing import Any

from ..config_tree import nested_configs, rewritten
from ..errors import ConfigError
from .leaf_datasets import WRAPPED

LABELLED, UNLABELLED = BRANCHES = 'sup', 'unsup'


def with_unlabelled(
    dataset: dict, ann_file: str, img: str | None = None, repeat: int = 1
) -> dict[str, Any]:
    """Add images without labels to a data set's config; each kind gets its branch.

    Args:
        dataset: Config of the labelled images, possibly of a wrapper; not changed.
        ann_file: COCO file that lists the images, absolute or in the same ``data_root``; its
            annotations are not used.
        img: Their folder, absolute or in ``data_root``. Defaults to that of the labelled images.
        repeat: How often an epoch goes through the labelled images. Defaults to 1.

    Raises:
        ConfigError: if no pipeline of ``dataset`` has a ``PackDetInputs``.
    """
    labelled = rewritten(dataset, partial(_with_branch, LABELLED))
    unlabelled = rewritten(dataset, partial(_with_branch, UNLABELLED))
    if labelled == dataset:
        raise ConfigError(
            'has no step PackDetInputs; with images without labels, a pipeline has to end with it',
            'train_dataloader.dataset',
        )
    for _, leaf in nested_configs(unlabelled, into=WRAPPED):
        if 'ann_file' in leaf:
            leaf.update(ann_file=ann_file, filter_cfg=dict(filter_empty_gt=False))
            if img is not None:
                leaf['data_prefix'] = {**(leaf.get('data_prefix') or {}), 'img': img}
    if repeat > 1:
        labelled = dict(type='RepeatDataset', times=repeat, dataset=labelled)
    return dict(type='ConcatDataset', datasets=[labelled, unlabelled])


def _with_branch(branch: str, step: Any) -> Any:
    """End a pipeline with a branch, and load no annotations for the unlabelled one."""
    kind = step.get('type') if isinstance(step, dict) else None
    if kind == 'PackDetInputs':
        return {'type': 'MultiBranch', 'branch_field': [*BRANCHES], branch: step}
    if kind == 'LoadAnnotations' and branch == UNLABELLED:
        return dict(type='LoadEmptyAnnotations')
    return step


def labelled_dataset(dataset: dict) -> dict | None:
    """Reduce a data set's config to its labelled images.

    Args:
        dataset: The config, possibly of a wrapper; not changed.

    Returns:
        The config with labelled images only, without branches; None if it has no labelled images; the
        same config if its pipelines make no branches.
    """
    if 'datasets' in dataset:
        inner = [labelled_dataset(x) for x in dataset['datasets']]
        inner = [x for x in inner if x is not None]
        return {**dataset, 'datasets': inner} if len(inner) > 1 else next(iter(inner), None)
    if 'dataset' in dataset:
        inner = labelled_dataset(dataset['dataset'])
        if inner is None:
            return None
        dataset = dataset if inner is dataset['dataset'] else {**dataset, 'dataset': inner}
    *steps, last = dataset.get('pipeline') or [{}]
    if last.get('type') != 'MultiBranch':
        return dataset
    branch = last.get(LABELLED)
    branch = [branch] if isinstance(branch, dict) else branch
    return branch and {**dataset, 'pipeline': [*steps, *branch]}
