"""Trains and tests detectors as mmdet's tools do, after checks of config and data."""

import copy
import os
import os.path as osp
import subprocess
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.registry import RUNNERS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..checks.annotations import check_annotations
from ..checks.checkpoints import CheckTestHook, CheckTrainHook
from ..checks.dry_run import rehearse
from ..checks.images import unreadable_images_named
from ..checks.settings import HOOKS_OF_MMENGINE, check_overrides, check_settings
from ..config_tree import config_of, value_at
from ..datasets import leaf_configs
from ..errors import ConfigError, warn
from .locks import locked

LOCK = '.lock'  # of a run, in its work directory
SECONDS_TO_END = 10  # that the processes of a killed run may take
NOISE = ('will be deprecated', 'is skipped since its requires_grad=False')  # of mmengine
TTA_MODEL = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
)
FLIPPED = dict(
    type='TestTimeAug',
    transforms=[
        [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
        [
            dict(
                type='PackDetInputs',
                meta_keys=(
                    *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
                    *('flip', 'flip_direction'),
                ),
            )
        ],
    ],
)
"""Test-time augmentation of a config without one, as in mmdet's tool."""


def run_training(
    config: str,
    overrides: Mapping[str, Any],
    *,
    work_dir: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    launcher: str = 'none',
    dry_run: bool = False,
) -> None:
    """Train a detector as the command says; ``resume`` is a checkpoint, or ``'auto'`` for the latest.

    Raises:
        ConfigError: if config or data have an error that shows before the run, a launcher's processes
            are missing, or another run trains in the work directory.
    """
    cfg = _read(config, overrides, work_dir, launcher)
    if amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if auto_scale_lr:
        if not {'enable', 'base_batch_size'} <= cfg.get('auto_scale_lr', {}).keys():
            raise ConfigError(
                '--auto-scale-lr needs auto_scale_lr = dict(enable=False, base_batch_size=N) in the '
                'config, N the batch size that its learning rate is for'
            )
        cfg.auto_scale_lr.enable = True
    if resume:
        cfg.resume, cfg.load_from_at_start = True, cfg.get('load_from')  # without a checkpoint
        cfg.load_from = None if resume == 'auto' else resume

    stages, hook = ('train', 'val'), CheckTrainHook()
    with unreadable_images_named():
        if dry_run:
            rehearse(cfg, lambda cfg: build_runner(_checked(cfg, stages, warn_of_test=True), hook))
        else:
            _checked(cfg, stages)
            with _reserved(cfg):
                build_runner(cfg, hook).train()


def run_test(
    config: str,
    checkpoint: str,
    overrides: Mapping[str, Any],
    *,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2.0,
    tta: bool = False,
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluate a checkpoint as the command says.

    Returns:
        The metrics by name.

    Raises:
        ConfigError: as for :func:`run_training`, or if the checkpoint does not fit the detector.
    """
    if out and not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out is {out}; accepted: a file that ends with .pkl or .pickle')
    cfg = _read(config, overrides, work_dir, launcher)
    cfg.load_from = checkpoint
    # mmengine writes the config into the work directory, where the training's is
    path = Path(config)
    object.__setattr__(cfg, '_filename', str(path.with_stem(f'test_{path.stem}')))
    if show or show_dir:
        cfg = trigger_visualization_hook(
            cfg, Namespace(show=show, show_dir=show_dir, wait_time=wait_time)
        )
    if tta:
        for _, dataset in leaf_configs(cfg, 'test_dataloader.dataset'):
            pipeline = [*copy.deepcopy(dataset.pipeline[:-1]), FLIPPED]
            dataset.pipeline = cfg.get('tta_pipeline', pipeline)
        cfg.model = dict(**cfg.get('tta_model', TTA_MODEL), module=cfg.model)
    with unreadable_images_named():
        runner = build_runner(_checked(cfg, ('test',)), CheckTestHook())
        if out:
            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
        return runner.test()


def _read(config: str, overrides: Mapping[str, Any], work_dir: str | None, launcher: str) -> Config:
    """Read a config, check changes to it, and apply them."""
    if launcher == 'pytorch':
        _check_torchrun()
    if launcher == 'slurm':
        if 'SLURM_PROCID' not in os.environ:
            raise ConfigError('--launcher slurm needs srun: srun --ntasks 8 python -m mmdet_sssd …')
        os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']  # configs may read it
    setup_cache_size_limit_of_dynamo()
    MMLogger.get_current_instance().setLevel('WARNING')  # runs set their own
    cfg = config_of(config)
    check_overrides(cfg, overrides)
    cfg.launcher = launcher
    cfg.merge_from_dict(overrides)
    stem = osp.splitext(osp.basename(config))[0]
    cfg.work_dir = work_dir or cfg.get('work_dir') or osp.join('work_dirs', stem)
    return cfg


def _checked(cfg: Config, stages: tuple[str, ...], warn_of_test: bool = False) -> Config:
    """Check a config and its data, and return it; ``warn_of_test`` warns of bad test data."""
    check_settings(cfg, stages)
    if value_at(cfg, 'optim_wrapper.type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError('--amp (optim_wrapper.type=AmpOptimWrapper) needs a GPU; there is none')
    if _is_first_process(cfg):
        check_annotations(cfg, stages)
        datasets = [value_at(cfg, f'{stage}_dataloader.dataset') for stage in ('val', 'test')]
        if warn_of_test and datasets[0] != datasets[1]:
            try:
                check_annotations(cfg, ('test',))
            except ConfigError as error:
                warn(str(error))
    return cfg


def build_runner(cfg: Config, hook: Hook) -> Runner:
    """Adapt a config to the processes at hand, and build its runner with a hook of checks.

    Default hooks that are None are left out; mmengine does so with its own only.
    """
    hooks = cfg.get('default_hooks') or {}
    for name in [x for x in hooks if hooks[x] is None and x not in HOOKS_OF_MMENGINE]:
        del hooks[name]
    if cfg.get('launcher') in ('pytorch', 'slurm') and get_device() == 'cpu':
        _join_cpu_processes(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.logger.addFilter(lambda record: not any(x in record.getMessage() for x in NOISE))
    if isinstance(runner, Runner):  # a FlexibleRunner loads checkpoints in its own way
        runner.register_hook(hook)
    return runner


@contextmanager
def _reserved(cfg: Config) -> Iterator[None]:
    """Keep other runs out of a config's work directory, whose files they would overwrite.

    Raises:
        ConfigError: if another run is there.
    """
    with ExitStack() as until_end:
        is_free = True
        if _is_first_process(cfg):
            lock = locked(Path(cfg.work_dir, LOCK), wait=SECONDS_TO_END, needed=False)
            is_free = until_end.enter_context(lock)
        if not is_free:
            raise ConfigError(
                f'another run is training in {cfg.work_dir}, and both would write the same files; give '
                'another --work-dir, or wait for its end (processes of one run need --launcher)'
            )
        yield


def _is_first_process(cfg: Config) -> bool:
    if cfg.launcher == 'none':  # whatever torchrun or srun say, each trains by itself
        return True
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0


def _check_torchrun() -> None:
    """Refuse a launcher without processes, and restarts that would wait for half an hour.

    Restarted processes can get outdated addresses: https://github.com/pytorch/pytorch/issues/135712.

    Raises:
        ConfigError: if torchrun is missing, or may restart the run with the addresses of the first try.
    """
    if 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch needs torchrun: torchrun --nproc-per-node 8 -m mmdet_sssd …'
        )
    restarts = int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0))
    if restarts and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':
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
