"""Loads mmengine checkpoints on torch 2.6 and later.

Since 2.6 ``torch.load`` refuses files that hold more than tensors and plain Python values, such as
mmengine 0.10's training checkpoints (with the message hub's history buffers). After :func:`install`,
these load too, still restricted. Local files that hold yet other objects are loaded in full, with a
warning; downloads never are.
"""

import logging
import os.path as osp
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import mmengine
import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_http
from mmengine.utils import digit_version

from ..errors import ConfigError


def install() -> None:
    """Make mmengine load checkpoints with this module, for the rest of the process.

    Distillers call it when built, :class:`~mmdet_sssd.hooks.SafeCheckpointHook` before it resumes a
    run, and this package's commands at their start. Importing the package does not.
    """
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    # All schemes that download (http, torchvision://, open-mmlab:// …) use this name.
    mmengine.runner.checkpoint.load_url = _load_url_restricted
    if find_spec('torchvision') is None:
        schemes = ('modelzoo://', 'torchvision://')
        CheckpointLoader.register_scheme(schemes, load_from_torchvision, force=True)


def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Load a checkpoint from a local file, restricted if possible, else in full.

    Args:
        filename: Path of the file; ``~`` is expanded.
        map_location: As in :func:`torch.load`.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: if the file does not exist.
        ConfigError: if it is a folder, or a file that is not a checkpoint or not whole.
    """
    filename = osp.expanduser(filename)
    if osp.isdir(filename):
        raise ConfigError(f'{filename} is a folder; give the path of a checkpoint (*.pth) in it')
    if not osp.isfile(filename):
        raise FileNotFoundError(f'checkpoint {filename} cannot be found')
    try:
        return _load_restricted_or_in_full(filename, map_location)
    except Exception as error:  # torch.load has many ways to fail on a broken file
        first_line = str(error)[:100].partition('\n')[0]
        raise ConfigError(
            f'{filename} cannot be read as a whole checkpoint ({type(error).__name__}: {first_line}); '
            'give another one, or remove it to --resume from an older one'
        ) from error


def _load_restricted_or_in_full(filename: str, map_location: Any) -> dict:
    try:
        with _history_buffers_allowed():
            return torch.load(filename, map_location=map_location, weights_only=True)
    except UnpicklingError:
        print_log(
            f'{filename} holds Python objects besides weights and training history; '
            'loading them can run code: open only checkpoints that you trust.',
            logger='current',
            level=logging.WARNING,
        )
        return torch.load(filename, map_location=map_location, weights_only=False)


def _history_buffers_allowed() -> AbstractContextManager:
    """Let the restricted load make history buffers, which hold NumPy numbers and their statistics."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        return nullcontext()
    scalar, (rebuild, *_) = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()
    functions = [(scalar, 'multiarray.scalar'), (rebuild, 'multiarray._reconstruct')]
    return torch.serialization.safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *{
                type(np.dtype(code))
                for code in '?' + np.typecodes['AllInteger'] + np.typecodes['Float']
            },
            # NumPy 1 and 2 name their functions' packages differently
            *((f, f'numpy.{core}.{name}') for core in ('core', '_core') for f, name in functions),
            (_statistic, 'builtins.getattr'),
        ]
    )


def _statistic(owner: type, name: str) -> Callable:
    """Stand in for the ``getattr`` of history buffers' statistics, since it could reach any object."""
    if owner is not HistoryBuffer or name not in HistoryBuffer()._statistics_methods:
        raise UnpicklingError(f'{name} of {owner} is not a statistic of a history buffer')
    return getattr(owner, name)


_load_url = mmengine.runner.checkpoint.load_url


def _load_url_restricted(url: str, *args: Any, **kwargs: Any) -> dict:
    """Download a checkpoint; refuse it if it holds more than tensors and plain values."""
    try:
        return _load_url(url, *args, weights_only=True, **kwargs)
    except URLError as error:
        raise ConfigError(
            f'{url} cannot be downloaded ({error.reason}); give a local file where a config names '
            'weights (load_from, or model.student.backbone.init_cfg.checkpoint), or start from random '
            'weights with model.student.backbone.init_cfg=None, and frozen_stages=-1 and '
            'norm_eval=False if the backbone has them'
        ) from error
    except UnpicklingError as error:
        raise ConfigError(
            f'{url} holds Python objects besides weights, which downloads may not. If you trust '
            'its source, download it yourself and give the path of the file.'
        ) from error


def load_from_torchvision(filename: str, map_location: Any = None) -> dict:
    """Load ``torchvision://NAME`` weights without torchvision, from mmengine's list of URLs."""
    urls = mmengine.load(osp.join(mmengine.__path__[0], 'hub/torchvision_0.12.json'))
    name = filename.partition('://')[2]
    if name not in urls:
        raise ConfigError(
            f'{filename}: mmengine lists no weights of that name; install torchvision for its newer '
            'ones, or give a file'
        )
    return load_from_http(urls[name], map_location)
