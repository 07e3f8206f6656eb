"""Configs as trees of dicts, lists and tuples; keys are dotted, as those of ``--cfg-options``."""

from collections.abc import Callable, Iterator
from typing import Any

DROPPED = object()


def nested_configs(
    config: Any, key: str = '', into: tuple[str, ...] | None = None
) -> Iterator[tuple[str, dict]]:
    """Walk through the dicts in a config, itself first, with their dotted keys.

    ``key`` is the config's own; ``into`` says which keys of dicts are followed, None all.
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
        config = config.get(name) if hasattr(config, 'get') else None
    return config


def rewritten(config: Any, change: Callable[[Any], Any]) -> Any:
    """Make another tree, of plain dicts; the given one is left as it is.

    ``change`` gives what stands for each value, after what is in it was rewritten; :data:`DROPPED`
    leaves it out. A container that this empties is left out as well.
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
