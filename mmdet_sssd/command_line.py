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
from mmengine.config import Config
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
    with user_errors_last(), _configs_checked(stages):
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
def _configs_checked(stages: tuple[str, ...]) -> Iterator[None]:
    """Check each config, as read and overridden by mmdet's tool, before a runner is built from it."""
    from_cfg = Runner.from_cfg

    def checked_from_cfg(cfg: Config) -> Runner:
        if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
            check_annotations(cfg, stages)
        return from_cfg(cfg)

    Runner.from_cfg = checked_from_cfg
    try:
        yield
    finally:
        Runner.from_cfg = from_cfg
