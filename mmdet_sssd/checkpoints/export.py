"""Exports a trained student as a stock checkpoint and a stock config."""

import copy
import hashlib
import io
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmengine.registry
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import Registry, init_default_scope

from ..config_tree import DROPPED, PACKAGE, config_of, imported_modules, nested_configs, rewritten
from ..datasets.branches import labelled_dataset
from ..errors import ConfigError
from ..models.distiller import is_distiller
from ..models.student import deployed_model
from ..runs import AtomicLocalBackend, check_finite, load_from_local
from ..state_dicts import PREFIX, misfit, student_weights


def export_student(
    checkpoint_file: str | os.PathLike,
    out_dir: str | os.PathLike,
    config_file: str | os.PathLike | None = None,
    name: str | None = None,
) -> tuple[Path, Path]:
    """Write the student of a training checkpoint as a stock mmdet checkpoint and config.

    The weights are those that the run evaluated: with an ``EMAHook`` the averaged ones, which mmengine
    saves as the checkpoint's ``state_dict``.

    Args:
        checkpoint_file: A local checkpoint of a run with a distiller, final or not.
        out_dir: Output folder, created if needed.
        config_file: Config of the run. Defaults to the one in the checkpoint.
        name: Base name of the files. Defaults to the checkpoint's.

    Returns:
        The paths of the checkpoint, ``NAME-<8 hex digits of its SHA-256>.pth``, in mmdet's publish
        format (``meta`` with the stock config's text, and ``state_dict``), and of the config,
        ``NAME.py``. The same checkpoint always gives the same files.

    Raises:
        FileNotFoundError: if the checkpoint or config does not exist.
        ConfigError: if the checkpoint is unreadable, is not a distiller's or holds no readable config,
            the config's model is not a distiller, the weights do not fit its student exactly or are
            not finite, or the folder is not writable.
    """
    checkpoint = load_from_local(str(checkpoint_file), map_location='cpu')
    weights = _student_weights(checkpoint, checkpoint_file)
    cfg = stock_config(_training_config(checkpoint, checkpoint_file, config_file))
    _check_fit(weights, cfg)
    check_finite(weights)
    meta = {**rewritten(checkpoint.get('meta', {}), _plain), 'cfg': cfg.pretty_text}
    content = serialized(dict(meta=meta, state_dict=weights))
    name = name or Path(checkpoint_file).stem
    sha = hashlib.sha256(content).hexdigest()
    paths = Path(out_dir, f'{name}-{sha[:8]}.pth'), Path(out_dir, f'{name}.py')
    try:
        AtomicLocalBackend().put(content, paths[0])
        AtomicLocalBackend().put_text(meta['cfg'], paths[1])
    except OSError as error:
        raise ConfigError(
            f'{out_dir} cannot be written to ({error}); give another folder'
        ) from error
    which = 'averaged (EMA)' if 'ema_state_dict' in checkpoint else 'trained'
    print_log(
        f"Saved the student's {which} weights to {paths[0]}, its config to {paths[1]}.", 'current'
    )
    return paths


def stock_config(cfg: Config) -> Config:
    """Convert the config of a run with a distiller to a stock config of its student.

    ``model`` becomes the former ``model.student``. Everything else that needs this package is removed:
    its import, and each dict whose ``type`` is one of its classes or derives from one, with containers
    that this empties. A subclass of a stock class becomes that class and keeps its arguments. Imports
    whose classes nothing names any more, such as a teacher's or a term's, are removed. Unlabelled
    images, which a stock detector cannot train on, are removed from the training data. Keys of
    ``custom_keys`` lose ``student.``, and those of teachers and terms go. Settings of the run
    (``load_from``, ``resume``, ``work_dir``) are cleared.

    Args:
        cfg: A config with a distiller; not changed.

    Raises:
        ConfigError: if its model is not a distiller.
    """
    content = cfg.to_dict()
    model = content.get('model') or {}
    if not is_distiller(model):
        raise ConfigError(
            f'model.type of the config is {model.get("type")!r}, which is not a distiller; '
            'accepted: the config of a run with model.type=SSSDDistiller, Distiller or SemiDistiller'
        )
    # The runner passes an outer data preprocessor to the model, other tools do not.
    content['model'] = deployed_model(content)
    _drop_unlabelled(content)
    content.update(load_from=None, resume=False)
    for key in ('work_dir', 'launcher', 'own_teacher'):  # the last of configs/_base_
        content.pop(key, None)
    content = _without_package(content)
    for _, part in nested_configs(content.get('optim_wrapper') or {}):
        if 'custom_keys' in part:
            part['custom_keys'] = _stock_keys(part['custom_keys'])
    _replace_constructor(content.get('optim_wrapper') or {})
    _drop_imports(content, before=set(_named(cfg.to_dict())))
    return Config(content)


def _replace_constructor(optim_wrapper: dict[str, Any]) -> None:
    """Name the stock base of an optimizer wrapper's constructor, if that needs this package."""
    stock_types, name = _stock_types(), optim_wrapper.get('constructor')
    if name in stock_types:
        del optim_wrapper['constructor']
        if stock_types[name]:
            optim_wrapper['constructor'] = stock_types[name]


def _stock_keys(custom_keys: dict[str, Any]) -> dict[str, Any]:
    """Rename parts of a distiller's parameters' names to those of the detector's parameters."""
    return {
        re.sub(r'^student(\.|$)', '', key): value
        for key, value in custom_keys.items()
        if not re.match(r'(teachers|terms)(\.|$)', key)
    }


def _student_weights(checkpoint: Any, file: str | os.PathLike) -> OrderedDict:
    """Extract the student's part of a checkpoint of a distiller."""
    state_dict = checkpoint.get('state_dict', {}) if isinstance(checkpoint, dict) else {}
    weights = student_weights(state_dict)
    if not weights:
        found = sorted({key.partition('.')[0] for key in state_dict})
        raise ConfigError(
            f'{file} has no weights under {PREFIX}* (found: {", ".join(found) or "none at all"}); '
            'accepted: a checkpoint of a run with a distiller. A stock checkpoint needs no export'
        )
    return weights


def _training_config(
    checkpoint: dict, file: str | os.PathLike, config_file: str | os.PathLike | None
) -> Config:
    if config_file is not None:
        return config_of(config_file)
    text = checkpoint.get('meta', {}).get('cfg')
    if not text:
        raise ConfigError(f"{file} holds no config in meta['cfg']; give the run's with --config")
    try:
        return Config.fromstring(text, '.py')
    except Exception as error:  # a config runs code, and imports custom_imports
        raise ConfigError(
            f"the config that {file} holds in meta['cfg'] cannot be read "
            f"({type(error).__name__}: {error}); mend that, or give the run's with --config"
        ) from error


def _check_fit(weights: OrderedDict, cfg: Config) -> None:
    """Make sure that the weights fit a stock detector built from the config exactly."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    detector = MODELS.build(copy.deepcopy(cfg.model))  # some detectors change their config
    expected = detector.state_dict()
    problem = misfit(expected, weights)
    if unexpected := sorted(weights.keys() - expected.keys()):
        problem = problem or f'{unexpected[0]} is not a weight of it'
    if problem:
        raise ConfigError(
            f"the checkpoint's student does not fit the config's, a {cfg.model.type}: {problem}; give "
            "the run's own config with --config"
        )


def _plain(value: Any) -> Any:
    """Convert NumPy values in metainfo to plain ones, for torch's restricted load."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def serialized(checkpoint: dict) -> bytes:
    """Serialise a checkpoint; unlike in a file, the bytes do not depend on the file's name."""
    with io.BytesIO() as stream:
        torch.save(checkpoint, stream)
        return stream.getvalue()


def _drop_imports(content: dict, before: set[str]) -> None:
    """Drop the ``custom_imports`` of this package, and those whose classes nothing names any more.

    A module of which the config, which named ``before``, has never named a class was imported for its
    effect, or for what other modules name, and stays.
    """
    imports, custom = imported_modules(content), content.pop('custom_imports', None)
    named, needed = set(_named(content)), []
    for module in imports:
        classes = {name for name, cls in _registered() if _comes_from(cls, module)}
        if not _is_from(PACKAGE, module) and (not classes & before or classes & named):
            needed.append(module)
    if needed:
        content['custom_imports'] = {**custom, 'imports': needed}


def _named(value: Any) -> Iterator[str]:
    """Yield the names that may be of classes or functions in a config, without their modules."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _named(inner)
    elif isinstance(value, str) or hasattr(value, '__qualname__'):
        yield getattr(value, '__qualname__', value).rpartition('.')[2]


def _registered() -> Iterator[tuple[str, type]]:
    """Yield all that mmengine's registries and those below them have, with its names."""
    registries = [x for x in vars(mmengine.registry).values() if isinstance(x, Registry)]
    for registry in registries:
        yield from registry.module_dict.items()
        registries += registry.children.values()


def _drop_unlabelled(content: dict) -> None:
    """Make the training loader read labelled images only, in batches without branches."""
    loader = content.get('train_dataloader') or {}
    labelled = labelled_dataset(loader.get('dataset') or {})
    if labelled and labelled is not loader['dataset']:
        loader['dataset'] = labelled
        if 'source_ratio' in (loader.get('sampler') or {}):  # MultiSourceSampler, for one source
            loader['sampler'] = dict(type='InfiniteSampler', shuffle=True)


def _without_package(content: dict) -> dict:
    """Drop dicts with a type of this package, or replace the type by its stock base class."""
    stock_types = _stock_types()

    def without(value: Any) -> Any:
        name = str(value.get('type')) if isinstance(value, dict) else ''
        name = name.rpartition('.')[2]  # without scope or module
        if name not in stock_types:
            return value
        return {**value, 'type': stock_types[name]} if stock_types[name] else DROPPED

    return rewritten(content, without)


def _stock_types() -> dict[str, str | None]:
    """Map each registered type that needs this package to its stock base class, or None."""
    registered = list(_registered())
    stock = {cls: name for name, cls in registered if not _needs_package(cls)}
    return {
        name: next((stock[x] for x in cls.__mro__ if x in stock), None)
        for name, cls in registered
        if _needs_package(cls)
    }


def _needs_package(cls: type) -> bool:
    """Tell whether a class or one of its bases is from this package."""
    return any(_is_from(PACKAGE, x.__module__) for x in getattr(cls, '__mro__', [cls]))


def _comes_from(cls: type, module: str) -> bool:
    """Tell whether importing a module makes a class known: it defines it, or has it by name."""
    known = vars(sys.modules[module]).values() if module in sys.modules else ()
    return _is_from(module, cls.__module__) or any(x is cls for x in known)


def _is_from(package: str, module: str) -> bool:
    return f'{module}.'.startswith(f'{package}.')
