"""The data sets that read files, within those that wrap them (concatenated, repeated, mixed …)."""

from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset

from ..config_tree import nested_configs, value_at

WRAPPED = ('datasets', 'dataset')  # where a wrapper has what it wraps


def leaf_configs(cfg: Config, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """Look through the data set's config at a key at those that name files, with their keys."""
    for inner_key, inner in nested_configs(value_at(cfg, key), key, into=WRAPPED):
        if not any(inner.get(name) for name in WRAPPED):
            yield inner_key, inner


def leaf_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Look through a loader's data set, as built, at those that have annotations and a pipeline."""
    if hasattr(dataset, 'datasets'):
        for inner in dataset.datasets:
            yield from leaf_datasets(inner)
    elif hasattr(dataset, 'dataset'):
        yield from leaf_datasets(dataset.dataset)
    elif isinstance(dataset, BaseDataset):
        yield dataset
