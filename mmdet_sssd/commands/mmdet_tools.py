"""Runs mmdet's tools on checked configs, and reports errors that users can fix."""

import os
import os.path as osp
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mmdet
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import FlexibleRunner, Runner

from ..checkpoints import loading
from ..datasets import check_annotations, unreadable_images_named
from ..errors import ConfigError, user_error
from ..hooks.check_dataset_hook import check_evaluated_classes
from ..hooks.model_parts import bare_model, find_detector
from ..models import Distiller
from ..models.student import count_classes
from ..optimizers import amp_where_it_runs
from .custom_imports import check_custom_imports
from .dry_run import DryRun
from .overrides import check_overrides


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
        ConfigError: if config or data have an error that shows before the run.
    """
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


class CheckTestHook(Hook):
    """Refuses to test what does not fit the detector: its checkpoint, or the data's classes.

    mmengine would test with random weights in place of those that do not fit.

    Raises:
        ConfigError: if a weight of the detector is missing from the checkpoint or has another shape
            there, or the test data name fewer classes than the detector predicts.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare names and shapes of weights; a stock checkpoint fits a distiller's student, too."""
        prefix = 'student.' if isinstance(bare_model(runner), Distiller) else ''
        loaded = {
            key.removeprefix('module.').removeprefix(prefix): value
            for key, value in checkpoint.get('state_dict', checkpoint).items()
        }
        for key, weight in find_detector(runner).state_dict().items():
            key = key.removeprefix('module.')
            if key.endswith('num_batches_tracked'):  # old checkpoints have none
                continue
            found = loaded.get(key)
            if found is None or found.shape != weight.shape:
                there = f'of shape {tuple(found.shape)}' if found is not None else 'missing'
                raise ConfigError(
                    f'{runner._load_from} does not fit the {runner.cfg.model.type} that the config '
                    f'makes: {key}, of shape {tuple(weight.shape)}, is {there} in it. Give the config '
                    'that it was trained with, or for a distilled student the files in the export '
                    'folder of its run'
                )

    def before_test(self, runner: Runner) -> None:
        """Compare the numbers of classes."""
        detector = find_detector(runner)
        check_evaluated_classes(runner.test_loop, detector, count_classes(detector))


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

    def prepared(from_cfg: Callable[[type, Config], Runner]) -> classmethod:
        def prepared_from_cfg(cls: type, cfg: Config) -> Runner | DryRun:
            _prepare(cfg, stages)
            build = partial(_build_quietly, partial(from_cfg, cls))
            if dry_run:
                return DryRun(cfg, build)
            runner = build(cfg)
            if stages == ('test',):
                runner.register_hook(CheckTestHook())
            return runner

        return classmethod(prepared_from_cfg)

    for runner, from_cfg in originals.items():
        runner.from_cfg = prepared(from_cfg.__func__)
    try:
        yield
    finally:
        for runner, from_cfg in originals.items():
            runner.from_cfg = from_cfg


def _prepare(cfg: Config, stages: tuple[str, ...]) -> None:
    """Check a config and its data, and adapt it to the processes at hand."""
    check_custom_imports(cfg)
    amp_where_it_runs(cfg)
    if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
        check_annotations(cfg, stages)
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.load_from_at_start = _dropped_load_from(cfg)
    if cfg.get('launcher') == 'pytorch':
        _check_restarts()
    if cfg.get('launcher') in ('pytorch', 'slurm') and get_device() == 'cpu':
        _join_cpu_processes(cfg)


def _build_quietly(build: Callable[[Config], Runner], cfg: Config) -> Runner:
    """Build a runner whose logger drops mmengine's warnings about its own deprecated classes."""
    runner = build(cfg)
    runner.logger.addFilter(lambda record: 'will be deprecated' not in record.getMessage())
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
