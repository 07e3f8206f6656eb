from collections.abc import Iterator

from mmengine.dataset import BaseDataset


def leaf_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Look through wrappers (concatenated, repeated, mixed …) at the data sets that read files.

    Args:
        dataset: A loader's data set.

    Yields:
        Those within it that have annotations and a pipeline of their own.
    """
    if hasattr(dataset, 'datasets'):
        for inner in dataset.datasets:
            yield from leaf_datasets(inner)
    elif hasattr(dataset, 'dataset'):
        yield from leaf_datasets(dataset.dataset)
    elif isinstance(dataset, BaseDataset):
        yield dataset
