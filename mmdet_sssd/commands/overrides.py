"""Checks changes to a config, ``KEY=VALUE``, for keys that would change nothing."""

import inspect
from collections.abc import Iterable, Sequence

from mmengine.config import Config
from mmengine.runner import Runner

from ..config_tree import value_at
from ..errors import ConfigError, did_you_mean

OF_TOOLS = ('auto_scale_lr', 'find_unused_parameters', 'runner_type', 'tta_model', 'tta_pipeline')
KNOWN = {*inspect.signature(Runner).parameters, *OF_TOOLS, 'custom_imports'}
"""Keys that mmengine and mmdet look for in a config, be they there or not."""


def check_overrides(cfg: Config, overrides: Sequence[str]) -> None:
    """Refuse changes that mmengine would write into the config without any effect.

    A setting that a module does not know is refused when the module is built; this is about keys
    above it, which mmengine makes up where they are not there.

    Args:
        cfg: The whole config, without the changes.
        overrides: The changes, ``KEY=VALUE``.

    Raises:
        ConfigError: if a key is none of the config's and none that mmengine knows, or is like one of
            the config's and has no ``type`` of its own.
    """
    keys = [text.partition('=')[0] for text in overrides]
    for key in keys:
        first, *rest = key.split('.')
        if first not in cfg and first not in KNOWN:
            hint = did_you_mean(first, {*cfg, *KNOWN})
            raise ConfigError(f'{key}: the config has no {first}{hint}')
        place = first
        for name in rest:
            found = value_at(cfg, place)
            if found is not None and not isinstance(found, (dict, list, tuple)):
                raise ConfigError(f'{key}: {place} is {found!r}, which has no settings of its own')
            place = f'{place}.{name}'
            if isinstance(found, dict) and name not in found and place != key:
                _check_new(place, name, found, keys)


def _check_new(place: str, name: str, siblings: Iterable[str], keys: Sequence[str]) -> None:
    """Refuse a new dict that looks like a mistyped one."""
    hint = did_you_mean(name, siblings)
    if hint and f'{place}.type' not in keys:
        raise ConfigError(f'the config has no {place}{hint} (a new one needs {place}.type)')
