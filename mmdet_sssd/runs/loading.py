"""Loads checkpoints restricted to weights and training history, on torch 2.6 and later.

Importing this module lets ``torch.load``, restricted by default, read the history buffers of mmengine's
training checkpoints, and restricts mmengine's downloads likewise.
"""

import os.path as osp
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import mmengine
import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version

from ..errors import ConfigError


def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Load a checkpoint from a local file.

    Args:
        filename: Path of the file; ``~`` is expanded.
        map_location: As in :func:`torch.load`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ConfigError: if it is a folder, or a file that is not a checkpoint, not whole, or holds other
            objects than weights, plain values and training history.
    """
    filename = osp.expanduser(filename)
    if osp.isdir(filename):
        raise ConfigError(f'{filename} is a folder; give the path of a checkpoint (*.pth) in it')
    if not osp.isfile(filename):
        raise FileNotFoundError(f'checkpoint {filename} cannot be found')
    try:
        return torch.load(filename, map_location=map_location)
    except Exception as error:  # torch.load has many ways to fail on a broken file
        first_line = str(error)[:100].partition('\n')[0]
        raise ConfigError(
            f'{filename} cannot be read ({type(error).__name__}: {first_line}). If it is whole and you '
            'trust its source, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 loads all that it holds'
        ) from error


def _load_url(load_url: Callable, url: str, *args: Any, **kwargs: Any) -> dict:
    """Download a checkpoint; refuse it if it holds more than ``load_from_local`` accepts."""
    try:
        return load_url(url, *args, **{**kwargs, 'weights_only': True})
    except URLError as error:
        raise ConfigError(
            f'{url} cannot be downloaded ({error.reason}); give a local file where a config names '
            'weights (load_from, or model.student.backbone.init_cfg.checkpoint), or start from random '
            'weights with model.student.backbone.init_cfg=None, frozen_stages=-1 and norm_eval=False '
            'if the backbone has them, and default_hooks.phases.freeze_backbone=0'
        ) from error
    except UnpicklingError as error:
        raise ConfigError(
            f'{url} holds Python objects besides weights, which downloads may not. If you trust '
            'its source, download it yourself and give the path of the file.'
        ) from error


def load_from_torchvision(filename: str, map_location: Any = None) -> dict:
    """Load ``torchvision://NAME`` weights without torchvision, from mmengine's list of URLs."""
    urls = mmengine.load(osp.join(mmengine.__path__[0], 'hub/torchvision_0.12.json'))
    if (name := filename.partition('://')[2]) not in urls:
        raise ConfigError(
            f'{filename}: mmengine lists no weights of that name; install torchvision for its newer '
            'ones, or give a file'
        )
    return mmengine.runner.checkpoint.load_from_http(urls[name], map_location)


def _statistic(owner: type, name: str) -> Callable:
    """Stand in for the ``getattr`` of history buffers' statistics, since it could reach any object."""
    if owner is not HistoryBuffer or name not in HistoryBuffer()._statistics_methods:
        raise UnpicklingError(f'{name} of {owner} is not a statistic of a history buffer')
    return getattr(owner, name)


def _allow_history_buffers() -> None:
    """Let restricted loads make history buffers, which hold NumPy numbers and their statistics."""
    scalar, (rebuild, *_) = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()
    functions = [(scalar, 'multiarray.scalar'), (rebuild, 'multiarray._reconstruct')]
    codes = '?' + np.typecodes['AllInteger'] + np.typecodes['Float']
    torch.serialization.add_safe_globals(
        [
            *(
                ConfigDict,
                HistoryBuffer,
                np.ndarray,
                np.dtype,
                *{type(np.dtype(code)) for code in codes},
            ),
            # NumPy 1 and 2 name their functions' packages differently
            *((f, f'numpy.{core}.{name}') for core in ('core', '_core') for f, name in functions),
            (_statistic, 'builtins.getattr'),
        ]
    )


if digit_version(torch.__version__) >= digit_version('2.6'):  # before, loads are not restricted
    _allow_history_buffers()
# All of mmengine's schemes that download (http, torchvision://, open-mmlab:// …) use this name;
# mmengine 0.10 leaves torch's default for downloads, which is to unpickle anything.
mmengine.runner.checkpoint.load_url = partial(_load_url, mmengine.runner.checkpoint.load_url)
# OneDL's function allows nothing any more after a load, and unpickles anything that is refused.
if hasattr(mmengine.runner.checkpoint, '_safe_torch_load'):
    mmengine.runner.checkpoint._safe_torch_load = torch.load
if find_spec('torchvision') is None:
    CheckpointLoader.register_scheme(
        ('modelzoo://', 'torchvision://'), load_from_torchvision, force=True
    )
