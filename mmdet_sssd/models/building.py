"""Builds the parts of a distiller from their configs."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch.nn as nn
from mmdet.registry import MODELS
from mmdet.utils import OptConfigType

from ..errors import ConfigError, check, did_you_mean, within

Part = TypeVar('Part')


def config_class(config: dict) -> Any:
    """Find the class that a config's ``type`` names or is.

    Returns:
        The class, or a function that builds models; None for an unregistered name.
    """
    cls = config.get('type')
    return MODELS.get(cls) if isinstance(cls, str) else cls


def is_config_of(config: Any, kind: type) -> bool:
    """Tell whether ``config`` is the config of a class or of one derived from it."""
    cls = config_class(config) if isinstance(config, dict) else None
    return isinstance(cls, type) and issubclass(cls, kind)


def completed(key: str, config: OptConfigType, **defaults: Any) -> dict:
    """Add defaults to a config; None counts as empty.

    Raises:
        ConfigError: if ``config`` is neither a dict nor None.
    """
    check(key, config, config is None or isinstance(config, dict), 'a dict')
    return {**defaults, **(config or {})}


def build_part(
    key: str,
    config: Any,
    kind: type[Part],
    names: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Part:
    """Build a part of a distiller and check its settings.

    Args:
        key: The config's key, for errors.
        config: The config; its ``type`` is a name or a class.
        kind: The accepted base class.
        names: Keys of the part's settings that lie elsewhere; see :func:`~mmdet_sssd.errors.within`.
        **arguments: Arguments that do not come from the config.

    Raises:
        ConfigError: if the config's class is not a ``kind``, or lacks or refuses an argument.
    """
    if not is_config_of(config, kind):
        known = [name for name, cls in MODELS.module_dict.items() if _is_concrete(cls, kind)]
        accepted = f'type={", ".join(sorted(known))}, or a {kind.__name__} of your own'
        if kind is nn.Module:  # hundreds
            accepted = 'the type of a module'
        raise ConfigError(f'is {config!r}; accepted: a dict with {accepted}', key)
    cls = config_class(config)
    settings = {name: value for name, value in config.items() if name != 'type'}
    signature = inspect.signature(cls)
    try:
        signature.bind(**arguments, **settings)
    except TypeError as error:
        accepted = ', '.join(name for name in signature.parameters if name not in arguments)
        unknown = re.search("unexpected keyword argument '(.+)'", str(error))
        hint = did_you_mean(unknown[1], signature.parameters) if unknown else ''
        raise ConfigError(
            f': {error}{hint or ";"} {cls.__name__} accepts: {accepted}', key
        ) from error
    with within(key, names):
        return cls(**arguments, **settings)


def _is_concrete(cls: Any, kind: type) -> bool:
    return isinstance(cls, type) and issubclass(cls, kind) and not inspect.isabstract(cls)
