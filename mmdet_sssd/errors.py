"""Errors that the user can mend, as opposed to faults of the program."""

import difflib
import errno
import inspect
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from mmdet import registry as registries
from mmengine.logging import print_log
from mmengine.registry import Registry

GIVEN_BY_OTHERS = ('args', 'kwargs', 'runner', 'dataloader', 'params')  # not by a config

OTHERS_USER_ERRORS = (
    'Torch not compiled with CUDA',
    'Expected one of cpu, cuda',
    'Found no NVIDIA driver',
    'No CUDA GPUs are available',
    'invalid device ordinal',
    'metric should be one of',
)
"""What torch, mmengine and mmdet say of settings, with errors of no particular class."""


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
def within(key: str, names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Prefix the keys of errors raised in the context with the key of the enclosing config.

    Args:
        key: The enclosing config's key.
        names: Complete keys of settings that are not below ``key``, by their names.

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
            name, dot, rest = error.key.partition('.')
            place = (names or {}).get(name, f'{key}.{name}')
            raise ConfigError(error.message, f'{place}{dot}{rest}') from error
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


def user_error(error: BaseException) -> str | None:
    """Say in a line what the user has to mend; None if it is the program that is broken."""
    if message := _unknown_setting(error) or _unknown_type(error):
        return message
    if isinstance(error, (ConfigError, FileNotFoundError)):
        # without what the workers of data loaders put before it
        message = str(error).rpartition(f'{ConfigError.__module__}.{ConfigError.__name__}: ')[2]
        return _without_place(message)
    if isinstance(error, SyntaxError):
        return f'{error.filename}, line {error.lineno}: {error.msg}'
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f'{error.filename}: ' if error.filename else ''
        return f'{where}{error.strerror}; make room, then continue with --resume'
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    if isinstance(error, torch.OutOfMemoryError):
        return (
            'out of GPU memory; accepted: a smaller train_dataloader.batch_size, --amp, or '
            'model.economy=True'
        )
    if isinstance(error, (UnpicklingError, EOFError)) or 'PytorchStreamReader' in str(error):
        return (
            'the checkpoint named above is not whole, or holds Python objects besides weights. If it '
            'is whole and you trust its source, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 loads it all'
        )
    if any(phrase in str(error) for phrase in OTHERS_USER_ERRORS):
        return ' '.join(_without_place(str(error.args[0])).split())
    return None


def _without_place(message: str) -> str:
    """Drop what mmengine's registries put before a message."""
    return re.sub(r'class `\w+` in [\w./-]+\.py: ', '', message)


def _unknown_setting(error: BaseException) -> str | None:
    """Say what a module accepts, if the error is about an argument that it does not know."""
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not (isinstance(error, TypeError) and match):
        return None
    name, unknown = match.groups()
    of_torch = getattr(torch.utils.data, name, None)  # DataLoader
    cls = next((found for x in _registries() if (found := x.get(name))), of_torch)
    if cls is None:
        return None
    accepted = [x for x in inspect.signature(cls).parameters if x not in GIVEN_BY_OTHERS]
    if 'student' in accepted:
        other = f'; a setting of the detector is written model.student.{unknown}.'
    else:
        other = '; if the config inherits it, replace the inherited dict with _delete_=True.'
    hint = did_you_mean(unknown, accepted) or other
    return f'{unknown} is not a setting of {name}{hint} Accepted: {", ".join(accepted) or "none"}'


def _unknown_type(error: BaseException) -> str | None:
    """Suggest types that are like one that no registry has, if the error is about that."""
    match = re.search(r'(\w+) is not in the (?:\w+::)?([\w ]+) registry', str(error))
    if not (isinstance(error, KeyError) and match):
        return None
    name, kind = match.groups()
    known = {x for registry in _registries() if registry.name == kind for x in registry.module_dict}
    hint = did_you_mean(name, known)
    return f'there is no {kind} of type {name}{hint} (custom_imports imports one of your own)'


def _registries() -> list[Registry]:
    """List mmdet's registries, and mmengine's, which have the same names."""
    return [x for x in vars(registries).values() if isinstance(x, Registry)]


def warn(message: str) -> None:
    """Log a warning."""
    print_log(message, logger='current', level=logging.WARNING)


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """Suggest what is like a name; empty if nothing else is."""
    matches = difflib.get_close_matches(name, {*accepted} - {name}, n=2, cutoff=0.75)
    return f'; did you mean {" or ".join(matches)}?' if matches else ''
