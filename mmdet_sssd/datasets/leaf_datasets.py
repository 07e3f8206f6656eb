"""Finds data sets inside wrappers (concatenated, repeated, mixed …), and evaluators in lists."""

from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset

from ..config_tree import nested_configs, value_at

WRAPPED = ('datasets', 'dataset')  # keys of a wrapper's inner data sets


def leaf_configs(cfg: Config, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the configs of data sets that name files, inside the one at a key, with their keys."""
    for inner_key, inner in nested_configs(value_at(cfg, key), key, into=WRAPPED):
        if not any(inner.get(name) for name in WRAPPED):
            yield inner_key, inner


def evaluator_configs(cfg: Config, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the configs of one or several evaluators, with their keys."""
    return nested_configs(cfg.get(key), key, into=())


def nested_datasets(dataset: object) -> Iterator[object]:
    """Yield a built data set and those inside it, outer ones first."""
    yield dataset
    inner = getattr(dataset, 'datasets', None)
    if inner is None:
        inner = [dataset.dataset] if hasattr(dataset, 'dataset') else []
    for part in inner:
        yield from nested_datasets(part)


def leaf_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Yield the data sets with annotations and a pipeline inside a built data set."""
    return (x for x in nested_datasets(dataset) if isinstance(x, BaseDataset))
