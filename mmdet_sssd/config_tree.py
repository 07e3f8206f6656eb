"""Configs as trees of dicts, lists and tuples, with dotted keys like those of ``--cfg-options``."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry

from .errors import ConfigError, user_error

DROPPED = object()
REMOVED = '_removed_'
PACKAGE = __name__.partition('.')[0]


def config_of(file: str | os.PathLike) -> Config:
    """Read a config file.

    Raises:
        ConfigError: if it cannot be read; a config is a program, which may fail in any way.
    """
    try:
        return Config.fromfile(file)
    except Exception as error:
        reason = user_error(error) or f'{type(error).__name__}: {error}'
        raise ConfigError(f'{file} cannot be read as a config ({reason})') from error


def class_of(config: dict, registry: Registry) -> Any:
    """Find what the ``type`` of a config names, by name or path, or is; None if there is none."""
    found = config.get('type')
    return registry.get(found) if isinstance(found, str) else found


def imported_modules(config: dict) -> list[str]:
    """List the modules that a config imports."""
    imports = (config.get('custom_imports') or {}).get('imports') or []
    return [imports] if isinstance(imports, str) else list(imports)


def with_imports(config: dict, *modules: str) -> dict[str, Any]:
    """Return a config's ``custom_imports`` with more modules."""
    custom = config.get('custom_imports') or {}
    return {
        'imports': list(dict.fromkeys([*imported_modules(config), *modules])),
        'allow_failed_imports': custom.get('allow_failed_imports', False),
    }


def nested_configs(
    config: Any, key: str = '', into: tuple[str, ...] | None = None
) -> Iterator[tuple[str, dict]]:
    """Yield the dicts in a config, outer ones first, with their dotted keys.

    ``key`` is the config's own key; ``into`` lists the keys of dicts to follow, None follows all.
    """
    inner = ()
    if isinstance(config, dict):
        yield key, config
        inner = [(k, x) for k, x in config.items() if into is None or k in into]
    elif isinstance(config, (list, tuple)):
        inner = enumerate(config)
    for name, value in inner:
        yield from nested_configs(value, f'{key}.{name}'.lstrip('.'), into)


def starts_pretrained(config: Config | ConfigDict) -> bool:
    """Tell whether a config's detector, or a part of it, starts from trained weights."""
    return bool(config.get('load_from')) or any(
        part.get('type') == 'Pretrained' or part.get('pretrained')
        for _, part in nested_configs(config.model)
    )


def value_at(config: Any, key: str) -> Any:
    """Look up a dotted key; None if it is missing."""
    for name in key.split('.'):
        if isinstance(config, (list, tuple)):
            config = {str(index): value for index, value in enumerate(config)}
        config = config.get(name) if hasattr(config, 'get') else None
    return config


def rewritten(config: Any, change: Callable[[Any], Any]) -> Any:
    """Make a changed copy of a tree, of plain dicts.

    ``change`` returns the replacement of each value, inner values first; :data:`DROPPED` leaves the
    value out. A container that this empties is left out too.
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


def overrides(base: dict, config: dict) -> dict:
    """List the changes that make one config of another, sorted by key; :func:`overridden` applies them.

    Example:
        >>> overrides(dict(a=dict(x=1, y=2), b=3), dict(a=dict(x=1, y=4)))
        {'a': {'y': 4}, '_removed_': ['b']}
    """
    changes = {
        key: overrides(base[key], config[key]) if _are_dicts(key, base, config) else config[key]
        for key in sorted(config)
        if key not in base or base[key] != config[key]
    }
    removed = sorted(base.keys() - config.keys())
    return {**changes, REMOVED: removed} if removed else changes


def overridden(base: dict, changes: dict) -> dict:
    """Apply the changes that :func:`overrides` found to a copy of the base."""
    config = {**base, **changes}
    for key in config.pop(REMOVED, ()):
        del config[key]
    for key in base.keys() & changes.keys():
        if _are_dicts(key, base, changes):
            config[key] = overridden(base[key], changes[key])
    return config


def _are_dicts(key: str, *configs: dict) -> bool:
    return all(isinstance(config.get(key), dict) for config in configs)
