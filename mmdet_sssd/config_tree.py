"""Configs as what they are: trees of dicts, lists and tuples, with values at dotted keys.

The keys are those of ``--cfg-options``: ``'model.roi_head.bbox_head.0.num_classes'``.
"""

from collections.abc import Callable, Iterator
from typing import Any

DROPPED = object()


def nested_configs(
    config: Any, key: str = '', into: tuple[str, ...] | None = None
) -> Iterator[tuple[str, dict]]:
    """Walk through the dicts in a config, itself first, with their dotted keys.

    Args:
        config: A dict, or a list or tuple of them; anything else has none.
        key: The config's own key.
        into: Which keys of dicts are followed. Defaults to all.

    Example:
        >>> [key for key, _ in nested_configs(dict(neck=dict(), heads=[dict(), dict()]), 'model')]
        ['model', 'model.neck', 'model.heads.0', 'model.heads.1']
    """
    inner = ()
    if isinstance(config, dict):
        yield key, config
        inner = [(k, x) for k, x in config.items() if into is None or k in into]
    elif isinstance(config, (list, tuple)):
        inner = enumerate(config)
    for name, value in inner:
        yield from nested_configs(value, f'{key}.{name}'.lstrip('.'), into)


def value_at(config: Any, key: str) -> Any:
    """Look a dotted key up; None if it is not there."""
    for name in key.split('.'):
        if isinstance(config, (list, tuple)):
            config = {str(index): value for index, value in enumerate(config)}
        config = config.get(name) if isinstance(config, dict) else None
    return config


def rewritten(config: Any, change: Callable[[Any], Any]) -> Any:
    """Make another tree of plain dicts, lists and tuples.

    Args:
        config: The tree; it is left as it is.
        change: Gives what stands for a value in the new tree, which for a dict, list or tuple has
            been rewritten inside; :data:`DROPPED` leaves it out. A container that this empties is
            left out as well.

    Example:
        >>> rewritten(dict(a=[1, 2], b=(2,)), lambda x: DROPPED if x == 2 else x)
        {'a': [1]}
    """
    if isinstance(config, dict):
        items = {key: rewritten(value, change) for key, value in config.items()}
        kept = {key: value for key, value in items.items() if value is not DROPPED}
    elif isinstance(config, (list, tuple)):
        items = [rewritten(value, change) for value in config]
        kept = type(config)(value for value in items if value is not DROPPED)
    else:
        return change(config)
    return DROPPED if items and not kept else change(kept)
