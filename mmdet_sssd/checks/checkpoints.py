"""Checks of the checkpoints that runs are resumed from or tested with."""

from collections.abc import Mapping
from typing import Any

from mmdet.models import SemiBaseDetector
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint
from torch import Tensor

from ..config_tree import nested_configs, value_at
from ..errors import ConfigError
from ..hooks.model_parts import bare_model, find_detector
from ..models import Distiller
from ..models.student import count_classes
from ..state_dicts import misfit
from .labels import check_evaluated_classes

STATE = ('meta', 'message_hub', 'optimizer')
"""What a checkpoint to resume from has beside weights."""

RESTORED = ('optim_wrapper.optimizer', 'param_scheduler')
"""Settings whose values a resumed run takes from its checkpoint."""


class CheckTestHook(Hook):
    """Refuses to test what does not fit the detector: its checkpoint, or the data's classes.

    mmengine would test with random weights in place of those that do not fit.

    Raises:
        ConfigError: if a weight of the detector is missing from the checkpoint or has another shape
            there, or the test data name fewer classes than the detector predicts.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare names and shapes of weights; a stock checkpoint fits a distiller's student, too."""
        if problem := misfit(
            find_detector(runner).state_dict(), detector_weights(runner, checkpoint)
        ):
            raise ConfigError(
                f'{runner._load_from} does not fit the {_name(runner)} that the config makes: '
                f'{problem}. Give the config that it was trained with, or for a distilled student the '
                'files in the export folder of its run'
            )

    def before_test(self, runner: Runner) -> None:
        """Compare the numbers of classes."""
        check_evaluated_classes(runner, runner.test_loop, count_classes(find_detector(runner)))


class CheckTrainHook(Hook):
    """Refuses to resume a run from a checkpoint of another model, or one that is no run's.

    It also refuses to start from weights of which none is the detector's, where mmengine would start
    without them, and warns of settings that a checkpoint replaces, and if nothing is left to train.

    Raises:
        ConfigError: if a checkpoint to resume from has only weights, or they do not fit the model; if
            none of the weights to start from has a name that the detector knows; if an epoch has no
            batch.
    """

    priority = 'HIGHEST'  # before hooks that read a resumed state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Look at the parts of the checkpoint, the shapes of weights, and the settings."""
        if not runner._resume:
            _check_start(runner, _weights(checkpoint))
            return
        path = runner._load_from or find_latest_checkpoint(runner.work_dir)
        if missing := [part for part in STATE if part not in checkpoint]:
            raise ConfigError(
                f'--resume: {path} has no {" and no ".join(missing)}, so it is not the checkpoint of a '
                f'run to go on with; to start a new run from its weights, set load_from={path}'
            )
        if problem := misfit(bare_model(runner).state_dict(), _weights(checkpoint)):
            raise ConfigError(
                f'--resume: {path} does not fit the {_name(runner)} that the config makes: '
                f'{problem}. Resume with the config that it was trained with, or set load_from={path} '
                'to start a new run, in another work_dir, from the weights that fit'
            )
        for key, now, then in _replaced_settings(runner.cfg, checkpoint['meta'].get('cfg', '')):
            runner.logger.warning(
                f'{key} is {now}, but a resumed run goes on with that of its checkpoint, {then}. For '
                f'another one start a new run with load_from={path}.'
            )

    def before_train(self, runner: Runner) -> None:
        """Refuse data that make no batch, and say if a resumed run is complete."""
        loop, is_by_epoch = runner.train_loop, isinstance(runner.train_loop, EpochBasedTrainLoop)
        if is_by_epoch and not len(loop.dataloader):
            raise ConfigError(
                f'train_dataloader makes no batch of its {len(loop.dataloader.dataset)} images with '
                f'batch_size={value_at(runner.cfg, "train_dataloader.batch_size")}: lower it, or set '
                'drop_last=False'
            )
        done, length = (loop.epoch, loop.max_epochs) if is_by_epoch else (loop.iter, loop.max_iters)
        if done >= length:
            unit = 'epochs' if is_by_epoch else 'iters'
            runner.logger.warning(
                f'The checkpoint is at the end of the run, {done} of {length} {unit}: nothing is left '
                f'to train. To train longer, raise train_cfg.max_{unit}.'
            )


def _check_start(runner: Runner, loaded: dict[str, Tensor]) -> None:
    model = bare_model(runner)
    own = model.state_dict().keys()
    # a distiller checks what it loads, mmdet's semi-supervised detectors rename it
    if isinstance(model, (Distiller, SemiBaseDetector)) or own & loaded.keys():
        return
    hint = ''
    if any(x.startswith('student.') for x in loaded):
        hint = '. Of a distilled run, give the checkpoint in its export folder'
    raise ConfigError(
        f'load_from: none of the {len(loaded)} weights of {runner._load_from} is one of the '
        f'{_name(runner)} that the config makes: it has {min(loaded, default="none")}, the detector '
        f'{min(own)}{hint}'
    )


def _name(runner: Runner) -> str:
    return type(bare_model(runner)).__name__


def _weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = checkpoint.get('state_dict', checkpoint)
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def detector_weights(runner: Runner, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Extract a checkpoint's weights of the detector: of a distiller's student, or a stock one's."""
    prefix = 'student.' if isinstance(bare_model(runner), Distiller) else ''
    return {key.removeprefix(prefix): x for key, x in _weights(checkpoint).items()}


def _replaced_settings(cfg: Config, text: str) -> list[tuple[str, Any, Any]]:
    """List settings that have no effect because the checkpoint's differ.

    Returns:
        Key, value, and value in the checkpoint, of each.
    """
    try:
        before = _restored_settings(Config.fromstring(text, '.py'))
    except Exception:  # it may import modules that are no longer there
        return []
    now = _restored_settings(cfg)
    return [(key, now[key], before[key]) for key in now if now[key] != before.get(key, now[key])]


def _restored_settings(cfg: Config) -> dict[str, Any]:
    return {
        f'{key}.{name}': value
        for part in RESTORED
        for key, config in nested_configs(value_at(cfg, part), part)
        for name, value in config.items()
        if not isinstance(value, dict)
    }
