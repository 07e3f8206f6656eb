"""Tells what a model's config is of, before it is built."""

from typing import Any

from mmdet.registry import MODELS


def class_of(config: dict) -> Any:
    """Find what a config's ``type`` stands for, which may be a name or the class itself.

    Returns:
        The class, or a function that builds models; None if there is none of that name.
    """
    cls = config.get('type')
    return MODELS.get(cls) if isinstance(cls, str) else cls


def is_config_of(config: Any, kind: type) -> bool:
    """Tell whether this is the config of a class or of one derived from it."""
    cls = class_of(config) if isinstance(config, dict) else None
    return isinstance(cls, type) and issubclass(cls, kind)
