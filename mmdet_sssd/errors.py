"""What the user has to mend, as opposed to what is broken in the program."""

import inspect
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.registry import HOOKS, MODELS


class ConfigError(ValueError):
    """A setting or a data set that cannot work.

    The message names the config key or the file, what was found and what is accepted. The tools print
    it as their last line, without a traceback.

    Args:
        message: What is wrong; after a key it goes on as a sentence, such as ``'is 2; accepted: 1'``,
            or with a colon.
        key: The config key, as far as the one who raises knows it; :func:`within` completes it. One
            that begins with ``model.`` is whole.
    """

    def __init__(self, message: str, key: str = '') -> None:
        space = ' ' if key and not message.startswith(':') else ''
        super().__init__(f'{key}{space}{message}')
        self.message = message
        self.key = key


@contextmanager
def within(key: str) -> Iterator[None]:
    """Complete the keys of the errors inside the context by that of the config they are part of.

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
        key: Its key, as far as it is known here.
        value: What was found.
        is_accepted: Whether that will do.
        accepted: What would.

    Raises:
        ConfigError: if ``is_accepted`` is false.
    """
    if not is_accepted:
        raise ConfigError(f'is {value!r}; accepted: {accepted}', key)


def is_number(value: Any, least: float = 0, most: float = math.inf) -> bool:
    """Tell whether a setting is a finite number within limits."""
    return isinstance(value, (int, float)) and math.isfinite(value) and least <= value <= most


def unknown_setting(error: Exception) -> ConfigError | None:
    """Say what a module of this package accepts, if the error is about an argument it does not know.

    Args:
        error: What was raised while modules were built from a config.

    Returns:
        The error to report instead; None if this one is about something else.
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
        hint = f"; one of the detector's is written model.student.{unknown}"
    return ConfigError(
        f'{unknown} is no setting of {name}{hint}. Accepted: {", ".join(accepted) or "none"}'
    )
