"""Branches of partly labelled batches, named as in mmdet's ``MultiBranch``."""

LABELLED, UNLABELLED = BRANCHES = 'sup', 'unsup'


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
        return inner and {**dataset, 'dataset': inner}
    *steps, last = dataset.get('pipeline') or [{}]
    if last.get('type') != 'MultiBranch':
        return dataset
    branch = last.get(LABELLED)
    branch = [branch] if isinstance(branch, dict) else branch
    return branch and {**dataset, 'pipeline': [*steps, *branch]}
