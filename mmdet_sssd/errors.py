"""What the user has to mend, as opposed to what is broken in the program."""

import inspect
import re
from typing import Any

from mmdet.registry import HOOKS, MODELS


class ConfigError(ValueError):
    """A setting or a data set that cannot work.

    The message names the config key or the file, what was found and what is accepted. The tools print
    it as their last line, without a traceback.
    """


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
    cls = HOOKS.get(match[1]) or MODELS.get(match[1])
    if cls is None or cls.__module__.partition('.')[0] != __package__:
        return None
    accepted = ', '.join(inspect.signature(cls).parameters)
    return ConfigError(f'{match[2]} is no setting of {match[1]}; accepted: {accepted or "none"}')


def check_settings(key: str, cls: type, config: dict[str, Any], given: dict[str, Any]) -> None:
    """Make sure that a class can be called with what a config says.

    Args:
        key: Place of the config, for the error.
        cls: The class.
        config: The config, with the arguments beside its ``type``.
        given: Those that do not come from there.

    Raises:
        ConfigError: if it is no dict, or an argument is missing or not one of the class's.
    """
    signature = inspect.signature(cls)
    accepted = ', '.join(name for name in signature.parameters if name not in given)
    if not isinstance(config, dict):
        raise ConfigError(f'{key} is {config!r}; accepted: a dict with {accepted}')
    settings = {name: x for name, x in config.items() if name != 'type'}
    try:
        signature.bind(**given, **settings)
    except TypeError as error:
        raise ConfigError(f'{key}: {error}; {cls.__name__} accepts: {accepted}') from error
