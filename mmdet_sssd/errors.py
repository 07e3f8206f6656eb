"""What the user has to mend, as opposed to what is broken in the program."""

import inspect
import re

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
