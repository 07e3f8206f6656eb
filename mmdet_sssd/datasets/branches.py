"""The branches of batches of which only a part is labelled, as mmdet's ``MultiBranch`` names them."""

LABELLED, UNLABELLED = BRANCHES = 'sup', 'unsup'


def labelled_dataset(dataset: dict) -> dict | None:
    """Make the config of a data set one of its labelled images, for training with labels alone.

    Args:
        dataset: The config; wrappers are looked through. It is left as it is.

    Returns:
        The config without the branch, None if there is no labelled image in it, and the same one if
        its pipelines make no branches.
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
