"""Checks changes to a config, ``KEY=VALUE``, for keys without effect."""

import inspect
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.runner import Runner

from ..config_tree import value_at
from ..errors import ConfigError, did_you_mean

OF_TOOLS = ('auto_scale_lr', 'find_unused_parameters', 'runner_type', 'tta_model', 'tta_pipeline')
KNOWN = {*inspect.signature(Runner).parameters, *OF_TOOLS, 'custom_imports'}
"""Optional keys that mmengine and mmdet read."""


def check_overrides(cfg: Config, overrides: Sequence[str]) -> None:
    """Refuse changes that would have no effect.

    Modules refuse unknown settings when they are built; this checks the keys above them, which
    mmengine adds to the config without question.

    Args:
        cfg: The whole config, without the changes.
        overrides: The changes, ``KEY=VALUE``.

    Raises:
        ConfigError: if neither the config nor mmengine has the first key, or if an inner key is new,
            gets no ``type``, and is a hook or resembles an existing key.
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
                raise ConfigError(f'{key}: {place} is {found!r}, which has no settings')
            place = f'{place}.{name}'
            is_new = isinstance(found, dict) and name not in found and place != key
            if is_new and f'{place}.type' not in keys:
                hint = did_you_mean(name, found)
                if hint or first == 'default_hooks':
                    raise ConfigError(
                        f'the config has no {place}{hint} (a new one needs {place}.type)'
                    )
