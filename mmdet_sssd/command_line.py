"""How this package's commands run mmdet's and report what the user has to mend."""

import os
import os.path as osp
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mmdet
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from .datasets import check_annotations
from .errors import ConfigError

USER_ERRORS = (ConfigError, FileNotFoundError)


def run_mmdet_tool(name: str, stages: tuple[str, ...]) -> None:
    """Run one of mmdet's tools with this process's arguments, and check the data before it starts.

    Args:
        name: ``'train'`` or ``'test'``.
        stages: Which loaders and evaluators of the config are checked: ``'train'``, ``'val'``,
            ``'test'``.
    """
    # mmengine imports pkg_resources anew for each config that it reads.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    script = osp.join(osp.dirname(mmdet.__file__), '.mim', 'tools', f'{name}.py')
    with user_errors_last(), _configs_prepared(stages):
        runpy.run_path(script, run_name='__main__')


@contextmanager
def user_errors_last() -> Iterator[None]:
    """End the process with the message alone if something is wrong that the user has to mend."""
    try:
        yield
    except USER_ERRORS as error:
        message = re.sub(r'class `\w+` in [\w./-]+\.py: ', '', str(error))  # mmengine's registries'
        sys.stdout.flush()
        sys.exit(f'error: {message}')


@contextmanager
def _configs_prepared(stages: tuple[str, ...]) -> Iterator[None]:
    """Check each config, as read and overridden by mmdet's tool, before a runner is built from it."""
    from_cfg = Runner.from_cfg

    def prepared_from_cfg(cfg: Config) -> Runner:
        if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
            check_annotations(cfg, stages)
        if cfg.get('launcher') == 'pytorch' and get_device() == 'cpu':
            _join_cpu_processes(cfg)
        return from_cfg(cfg)

    Runner.from_cfg = prepared_from_cfg
    try:
        yield
    finally:
        Runner.from_cfg = from_cfg


def _join_cpu_processes(cfg: Config) -> None:
    """Join torchrun's processes without a GPU; mmengine would look for one in each."""
    torch.distributed.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )
