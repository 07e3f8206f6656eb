"""Errors that the user can mend, as opposed to faults of the program."""

import inspect
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.registry import HOOKS, MODELS


class ConfigError(ValueError):
    """An unusable setting or data set.

    The message names the config key or the file, what was found and what is accepted. The tools print
    it as their last line, without a traceback.

    Args:
        message: The problem; after a key it continues the sentence, as in ``'is 2; accepted: 1'``, or
            begins with a colon.
        key: The config key, as far as the caller knows it; :func:`within` completes it. A key that
            begins with ``model.`` is complete.
    """

    def __init__(self, message: str, key: str = '') -> None:
        space = ' ' if key and not message.startswith(':') else ''
        super().__init__(f'{key}{space}{message}')
        self.message = message
        self.key = key


@contextmanager
def within(key: str) -> Iterator[None]:
    """Prefix the keys of errors raised in the context with the key of the enclosing config.

    Example:
        >>> with within('model.distill_loss'):
        ...     check('tau', -1, False, 'a number > 0')
        Traceback (most recent call last):
        mmdet_sssd.errors.ConfigError: model.distill_loss.tau is -1; accepted: a number > 0
    """
    try:
        yield
    except ConfigError as error:
        if error.key.startswith('model.'):
            raise
        if error.key:
            raise ConfigError(error.message, f'{key}.{error.key}') from error
        raise ConfigError(f': {error.message}', key) from error


def check(key: str, value: Any, is_accepted: bool, accepted: str) -> None:
    """Refuse a setting that is not accepted.

    Args:
        key: The setting's key, as far as it is known here.
        value: The setting's value.
        is_accepted: Whether the value is accepted.
        accepted: The accepted values, in words.

    Raises:
        ConfigError: if ``is_accepted`` is false.
    """
    if not is_accepted:
        raise ConfigError(f'is {value!r}; accepted: {accepted}', key)


def is_number(value: Any, least: float = 0, most: float = math.inf) -> bool:
    """Tell whether a setting is a finite number in [``least``, ``most``]."""
    return isinstance(value, (int, float)) and math.isfinite(value) and least <= value <= most


def unknown_setting(error: Exception) -> ConfigError | None:
    """Turn an unknown argument of one of this package's modules into an error that lists its settings.

    Args:
        error: An error raised while modules were built from a config.

    Returns:
        The error to report instead; None if ``error`` has another cause.
    """
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not (isinstance(error, TypeError) and match):
        return None
    name, unknown = match.groups()
    cls = HOOKS.get(name) or MODELS.get(name)
    if cls is None or cls.__module__.partition('.')[0] != __package__:
        return None
    accepted = inspect.signature(cls).parameters
    hint = ''
    if 'student' in accepted:
        hint = f'; a setting of the detector is written model.student.{unknown}'
    return ConfigError(
        f'{unknown} is not a setting of {name}{hint}. Accepted: {", ".join(accepted) or "none"}'
    )
