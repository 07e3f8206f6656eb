"""Runs mmdet's tools on checked configs, and reports errors that users can fix."""

import errno
import os
import os.path as osp
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import mmdet
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.runner import FlexibleRunner, Runner

from ..checkpoints import loading
from ..datasets import check_annotations, unreadable_images_named
from ..errors import ConfigError, user_error
from ..optimizers import amp_where_it_runs
from .checkpoint_checks import CheckResumeHook, CheckTestHook
from .custom_imports import check_custom_imports
from .dry_run import DryRun, warnings_listed
from .locks import locked
from .overrides import check_overrides
from .settings_check import check_settings

LOCK = '.lock'  # of a run, in its work directory
SECONDS_TO_END = 10  # that the processes of a killed run may take


def run_mmdet_tool(
    name: str,
    args: Sequence[str],
    overrides: Sequence[str],
    stages: tuple[str, ...],
    dry_run: bool = False,
) -> None:
    """Run one of mmdet's tools in this process, after checking config and data.

    Args:
        name: ``'train'`` or ``'test'``.
        args: Its arguments, the config first.
        overrides: Changes to the config, ``KEY=VALUE``.
        stages: Stages whose loaders and evaluators are checked: ``'train'``, ``'val'``, ``'test'``.
        dry_run: Whether to do a :class:`~.dry_run.DryRun` instead of the run.

    Raises:
        ConfigError: if config or data have an error that shows before the run, or a launcher's
            processes are missing.
    """
    if 'pytorch' in args and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch needs torchrun: torchrun --nproc-per-node 8 -m mmdet_sssd …'
        )
    loading.install()
    MMLogger.get_current_instance().setLevel('WARNING')  # for this tool; runs set their own
    if overrides:
        check_overrides(Config.fromfile(args[0]), overrides)
        args = [*args, '--cfg-options', *overrides]
    script = osp.join(osp.dirname(mmdet.__file__), '.mim', 'tools', f'{name}.py')
    before, sys.argv = sys.argv, [script, *args]
    try:
        with _configs_prepared(stages, dry_run), unreadable_images_named():
            runpy.run_path(script, run_name='__main__')
    finally:
        sys.argv = before


@contextmanager
def user_errors_last() -> Iterator[None]:
    """End the process with a one-line message on errors that the user can fix."""
    try:
        yield
    except Exception as error:
        if (message := user_error(error)) is None:
            raise
        sys.stdout.flush()
        sys.exit(f'error: {message}')


@contextmanager
def _configs_prepared(stages: tuple[str, ...], dry_run: bool) -> Iterator[None]:
    """Prepare each config, as read and overridden by mmdet's tool, before its runner is built."""
    originals = {runner: vars(runner)['from_cfg'] for runner in (Runner, FlexibleRunner)}
    with ExitStack() as until_end:
        warnings = until_end.enter_context(warnings_listed())

        def prepared(from_cfg: Callable[[type, Config], Runner]) -> classmethod:
            def prepared_from_cfg(cls: type, cfg: Config) -> Runner | DryRun:
                _prepare(cfg, stages)
                build = partial(_build_runner, partial(from_cfg, cls), stages)
                if dry_run:
                    return DryRun(cfg, build, warnings)
                if 'train' in stages and _is_first_process():
                    until_end.enter_context(_reserved(cfg.work_dir))
                return build(cfg)

            return classmethod(prepared_from_cfg)

        for runner, from_cfg in originals.items():
            runner.from_cfg = prepared(from_cfg.__func__)
            until_end.callback(setattr, runner, 'from_cfg', from_cfg)
        yield


@contextmanager
def _reserved(work_dir: str) -> Iterator[None]:
    """Keep other runs out of a work directory, whose files they would overwrite.

    Raises:
        ConfigError: if another run is there.
    """
    with ExitStack() as until_end:
        try:
            is_free = until_end.enter_context(locked(Path(work_dir, LOCK), wait=SECONDS_TO_END))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            is_free = True  # a file system without locks
        if not is_free:
            raise ConfigError(
                f'another run is training in {work_dir}, and both would write the same files; give '
                'another --work-dir, or wait for its end'
            )
        yield


def _is_first_process() -> bool:
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0


def _prepare(cfg: Config, stages: tuple[str, ...]) -> None:
    """Check a config and its data, and adapt it to the processes at hand."""
    check_custom_imports(cfg)
    check_settings(cfg, stages)
    amp_where_it_runs(cfg)
    if _is_first_process():
        check_annotations(cfg, stages)
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.load_from_at_start = _dropped_load_from(cfg)
    if cfg.get('launcher') == 'pytorch':
        _check_restarts()
    if cfg.get('launcher') in ('pytorch', 'slurm') and get_device() == 'cpu':
        _join_cpu_processes(cfg)


def _build_runner(
    from_cfg: Callable[[Config], Runner], stages: tuple[str, ...], cfg: Config
) -> Runner:
    """Build a runner that checks checkpoints, without mmengine's warnings about its own classes."""
    runner = from_cfg(cfg)
    runner.logger.addFilter(lambda record: 'will be deprecated' not in record.getMessage())
    if isinstance(runner, Runner):
        runner.register_hook(CheckResumeHook() if 'train' in stages else CheckTestHook())
    return runner


def _dropped_load_from(cfg: Config) -> str | None:
    """Find the weights to start from, which mmdet's ``--resume`` drops.

    A run without a checkpoint starts from them, so the same command starts and resumes a run.
    """
    for option in sys.argv:
        if option.startswith('load_from='):
            return option.partition('=')[2]
    return Config.fromfile(cfg.filename).get('load_from')


def _check_restarts() -> None:
    """Refuse restarts by torchrun that would give processes outdated addresses of each other.

    They would wait for half an hour: https://github.com/pytorch/pytorch/issues/135712.

    Raises:
        ConfigError: if torchrun may restart the run with the addresses of the first try.
    """
    if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)) and (
        os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    ):
        raise ConfigError(
            'torchrun --max-restarts would hand old addresses to restarted processes, which then hang; '
            'add --standalone (one machine) or --rdzv-backend c10d --rdzv-endpoint HOST:PORT to it, '
            'and set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment'
        )


def _join_cpu_processes(cfg: Config) -> None:
    """Join the processes of torchrun or srun without GPUs; mmengine would require one in each."""
    if cfg.launcher == 'slurm':
        _set_torchrun_variables()
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


def _set_torchrun_variables() -> None:
    """Set the variables that torchrun would set for a Slurm task, as mmengine does on GPUs."""
    hosts = subprocess.check_output(
        ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], text=True
    )
    os.environ.setdefault('MASTER_ADDR', hosts.split()[0])
    os.environ.setdefault('MASTER_PORT', '29500')
    os.environ.update(
        RANK=os.environ['SLURM_PROCID'],
        LOCAL_RANK=os.environ['SLURM_LOCALID'],
        WORLD_SIZE=os.environ['SLURM_NTASKS'],
    )
