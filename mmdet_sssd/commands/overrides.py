"""Checks changes to a config, ``KEY=VALUE``, for keys without effect."""

import inspect
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.runner import Runner

from ..config_tree import nested_configs, value_at
from ..datasets import VARIABLES
from ..errors import ConfigError, did_you_mean

OF_TOOLS = ('auto_scale_lr', 'find_unused_parameters', 'runner_type', 'tta_model', 'tta_pipeline')
OF_RUNNERS = (
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'model_wrapper_cfg',
    'sync_bn',
)
KNOWN = {*inspect.signature(Runner).parameters, *OF_TOOLS, *OF_RUNNERS, 'custom_imports'}
"""Keys that mmengine and mmdet read."""

OF_MMDET_2 = dict(
    data='train_dataloader',
    evaluation='val_evaluator',
    lr='optim_wrapper.optimizer.lr',
    lr_config='param_scheduler',
    optimizer='optim_wrapper.optimizer',
    runner='train_cfg',
)


def check_overrides(cfg: Config, overrides: Sequence[str]) -> None:
    """Refuse changes that would have no effect.

    Modules refuse unknown settings when they are built; this checks the keys above them, which
    mmengine adds to the config without question.

    Args:
        cfg: The whole config, without the changes.
        overrides: The changes, ``KEY=VALUE``.

    Raises:
        ConfigError: if mmengine does not read the first key, such as one of the config's variables, or
            if an inner key is new, gets no ``type``, and is a hook or resembles an existing key.
    """
    keys = [text.partition('=')[0] for text in overrides]
    for key in keys:
        first, *rest = key.split('.')
        if first not in KNOWN:
            raise _without_effect(cfg, key, first)
        place = first
        for name in rest:
            found = value_at(cfg, place)
            if found is not None and not isinstance(found, (dict, list, tuple)):
                raise ConfigError(f'{key}: {place} is {found!r}, which has no settings')
            place = f'{place}.{name}'
            is_new = isinstance(found, dict) and name not in found and place != key
            if is_new and f'{place}.type' not in keys:
                hint = did_you_mean(name, found)
                if hint or first == 'default_hooks':
                    raise ConfigError(
                        f'the config has no {place}{hint} (a new one needs {place}.type)'
                    )


def _without_effect(cfg: Config, key: str, first: str) -> ConfigError:
    """Say what to change instead of a key that mmengine does not read."""
    if first not in cfg:
        renamed = f'; did you mean {OF_MMDET_2[first]}?' if first in OF_MMDET_2 else ''
        hint = renamed or did_you_mean(first, KNOWN)
        return ConfigError(f'{key}: the config has no {first}{hint}')
    variable = f'SSSD_{first.upper()}'
    if variable in VARIABLES and 'train_ann' in cfg:  # a config for the user's own data
        advice = f'set {variable} in the environment'
    else:
        places = [
            f'{place}.{first}' for place, x in nested_configs(cfg.to_dict()) if place and first in x
        ]
        advice = f'change {" or ".join(places[:3]) or "what it was used for"}, or the file'
    return ConfigError(
        f'{key}: the config has used its variable {first} by the time it is changed; {advice}'
    )
