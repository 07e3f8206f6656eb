"""Writes a config that distills a stock config's detector."""

import copy
import os.path as osp
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from ... import hooks
from ...config_tree import PACKAGE, nested_configs, value_at, with_imports
from ...errors import ConfigError, within
from ...models import probe
from ...models.distiller import is_distiller
from ...models.replay import head_parameters
from ...optimizers import StudentNames
from .changes import Changes, stock_changes
from .options import RANKING_BRANCHES, WrappingOptions
from .source import LINE_LENGTH, Expression, assignment, source


def write_wrapped_config(
    stock: str, out: Path, options: WrappingOptions | None = None, build: bool = True
) -> list[str]:
    """Write a config that inherits a stock config and distills its model.

    Before it is moved to ``out``, the config is read back, compared with the stock config and, with
    ``build``, built.

    Args:
        stock: A config file, or a name like ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.
        out: The file to write; an existing file is replaced.
        options: Settings of the wrapped config. Defaults to none.
        build: Whether to build the distiller (without loading weights). Defaults to True.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        ConfigError: if the stock config cannot be read, has no detector, or has a distiller already;
            if an option cannot be applied; or if the distiller cannot be built.
    """
    options = options or WrappingOptions()
    if out.suffix != '.py' or out.resolve() == Path(stock).resolve():
        raise ConfigError(f'--out is {out}; accepted: a .py file other than the stock config')
    stock_config = _read_stock(stock)
    if options.detach_appearance is None and 'roi_head' in stock_config.model:
        options = replace(options, detach_appearance=True)  # as in the papers' R-CNNs
    changes = stock_changes(stock_config, options)
    distiller = options.distiller()
    settings = {
        'custom_imports': with_imports(stock_config, PACKAGE),
        'model': {'type': 'SSSDDistiller', **distiller, **_fitted(stock_config, distiller)},
        'default_hooks': options.hooks(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    base = stock if '::' in stock else Path(osp.relpath(stock, out.parent)).as_posix()
    draft = out.with_name(f'.{out.stem}.draft.py')
    text = _text(base, settings, changes, options.comments())
    draft.write_text(text, encoding='utf-8')
    try:
        _check_draft(draft, _expected(stock_config, settings, changes), stock, build)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return _notes(stock_config, options)


def read_config(name: str) -> Config:
    """Read a whole config the way a config that inherits it would.

    Args:
        name: A config file, or a name like ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.

    Raises:
        ConfigError: if it cannot be read or inherited.
    """
    base = name if '::' in name else osp.abspath(name)
    with tempfile.TemporaryDirectory() as folder:
        heir = Path(folder) / 'heir.py'
        heir.write_text(f'_base_ = [{base!r}]\n', encoding='utf-8')
        try:
            return Config.fromfile(heir, import_custom_modules=False)
        except ConfigError:
            raise
        except Exception as error:  # a config is a program
            if 'read_base' in str(error):
                raise ConfigError(
                    f'{name} is a new-style config (`with read_base()`), which mmengine does not let '
                    'classic configs inherit; use the config of that name from mmdet::, or write its '
                    'cfg.dump() to a file and use that'
                ) from error
            raise ConfigError(
                f'{name} cannot be read as a config ({type(error).__name__}: {error}); accepted: a '
                'file, or a name like mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
            ) from error


def _read_stock(stock: str) -> ConfigDict:
    """Read a stock detector's config as the wrapped one will inherit it."""
    config = read_config(stock)
    model = config.get('model') or {}
    if 'type' not in model:
        raise ConfigError(f'{stock} has no model.type; accepted: the whole config of a detector')
    if is_distiller(model):
        raise ConfigError(
            f'{stock} has a distiller already (model.type is {model["type"]}); inherit it, and '
            'override model.student and the hooks there'
        )
    return config._cfg_dict


def _fitted(stock: ConfigDict, distiller: dict[str, Any]) -> dict[str, Any]:
    """Make those of the distiller's settings that depend on the detector's parts."""
    if not distiller.keys() & {'economy', 'teacher_head_grad'}:
        return {}
    init_default_scope(stock.get('default_scope', 'mmdet'))
    try:
        import_modules_from_strings(**(stock.get('custom_imports') or {'imports': []}))
        detector = MODELS.build(copy.deepcopy(stock.model))
        sizes = {x.shape[-2:] for x in probe(detector).feats}
    except Exception:  # reported when the distiller is built
        return {}
    fitted = {} if len(sizes) > 1 else {'start_level': 0}  # no finest level to skip
    if 'teacher_head_grad' in distiller:
        names = [name for name, *_ in head_parameters(detector)]
        ranking = [x for x in RANKING_BRANCHES if any(x in name for name in names)]
        is_all = all(any(x in name for x in ranking) for name in names)
        fitted['teacher_head_grad'] = 0 if is_all else dict.fromkeys(ranking, 0) or 1.0
    return fitted


def _text(base: str, settings: dict[str, dict], changes: Changes, comments: dict[str, str]) -> str:
    start = {'_delete_': True, 'type': None, 'student': Expression('_base_.model')}
    parts = [
        f'_base_ = {base!r}\n',
        *_changes_lines(changes),
        assignment('custom_imports', settings['custom_imports']),
        assignment('model', start | settings['model']),
        'default_hooks = dict(',
        *_hook_lines(settings['default_hooks'], comments),
        ')',
    ]
    return '\n'.join(parts) + '\n'


def _changes_lines(changes: Changes) -> list[str]:
    """Write the changes to the stock config, the class names once."""
    if not changes:
        return []
    lines = []
    classes = _named_classes(changes)
    if classes is not None:
        lines.append(assignment('classes', classes))
    for key, value in changes.items():
        if classes is not None and key.endswith('.metainfo'):
            value = {'classes': Expression('classes')}
        elif classes is not None and key.endswith('.num_classes'):
            value = Expression('len(classes)')
        lines.append(assignment('_base_.' + re.sub(r'\.(\d+)', r'[\1]', key), value))
    comment = '# Changed in every place: mmengine resolves values when it reads the stock config.'
    return [comment, *lines, '']


def _named_classes(changes: Changes) -> tuple[str, ...] | None:
    return next((v['classes'] for k, v in changes.items() if k.endswith('.metainfo')), None)


def _hook_lines(hooks: dict[str, dict], comments: dict[str, str]) -> list[str]:
    """Write the hooks, each with its comment: beside it, or above if the line is too long."""
    lines = []
    for name, hook in hooks.items():
        line, comment = f'    {name}={source(hook)},', f'# {comments[name]}'
        fits = len(f'{line}  {comment}') <= LINE_LENGTH
        lines.append(f'{line}  {comment}' if fits else f'    {comment}\n{line}')
    return lines


def _expected(stock: ConfigDict, settings: dict[str, dict], changes: Changes) -> ConfigDict:
    """Derive the whole wrapped config from the stock config."""
    expected = copy.deepcopy(stock)
    for key, value in changes.items():
        place, _, name = key.rpartition('.')
        value_at(expected, place)[name] = value
    if (classes := _named_classes(changes)) is not None:
        expected.classes = classes
    expected.model = {**settings['model'], 'student': expected.model}
    expected.custom_imports = settings['custom_imports']
    default_hooks = expected.setdefault('default_hooks', ConfigDict())
    for name, hook in settings['default_hooks'].items():
        default_hooks[name] = {**(default_hooks.get(name) or {}), **hook}
    return expected


def _check_draft(path: Path, expected: ConfigDict, stock: str, build: bool) -> None:
    """Read the draft, compare it with the expected config, and build hooks, loss and distiller."""
    config = Config.fromfile(path, import_custom_modules=False)
    other = [x for x in sorted({*config, *expected}) if config.get(x) != expected.get(x)]
    if other:
        raise ConfigError(
            f'{stock} cannot be wrapped: {", ".join(other)} would change too; nothing was written'
        )
    init_default_scope(config.get('default_scope', 'mmdet'))
    for hook in config.default_hooks.values():
        if hook and hook.get('type') in hooks.__all__:
            HOOKS.build(copy.deepcopy(hook))
    if config.model.get('distill_loss'):
        with within('model.distill_loss'):
            MODELS.build(copy.deepcopy(config.model.distill_loss))
    if build:
        _check_builds(config, stock)


def _check_builds(config: Config, stock: str) -> None:
    """Build the distiller as a runner would, without loading weights."""
    try:
        import_modules_from_strings(**config.custom_imports)
        model = copy.deepcopy(config.model)
        model.setdefault('data_preprocessor', config.get('data_preprocessor'))
        MODELS.build(model)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'the distiller of {stock} cannot be built ({type(error).__name__}: {error}); --no-build '
            'writes the config anyway'
        ) from error


def starts_pretrained(stock: Config | ConfigDict) -> bool:
    """Tell whether a config's detector, or a part of it, starts from trained weights."""
    return bool(stock.get('load_from')) or any(
        part.get('type') == 'Pretrained' or part.get('pretrained')
        for _, part in nested_configs(stock.model)
    )


def _notes(stock: ConfigDict, options: WrappingOptions) -> list[str]:
    """Collect notes for the user of a wrapped config."""
    notes = []
    pretrained = starts_pretrained(stock)
    if not pretrained and 'freeze_backbone' in options.hooks():
        notes.append(
            'the backbone has no init_cfg with weights: if it starts from random ones, the hook '
            'freeze_backbone only costs time; --from-scratch leaves it out'
        )
    if pretrained and options.from_scratch:
        notes.append(
            'the stock config loads pretrained weights; --from-scratch only leaves out the hook '
            'freeze_backbone. To start from random weights, set '
            'model.student.backbone.init_cfg=None, and frozen_stages=-1 and norm_eval=False if the '
            'backbone has them'
        )
    name = (stock.get('optim_wrapper') or {}).get('constructor')
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(name) if isinstance(name, str) else name
    by_layer = constructor and 'Decay' in constructor.__name__
    if by_layer and not issubclass(constructor, StudentNames):
        notes.append(
            f'optim_wrapper.constructor is {name}, which finds layers by names that start with '
            'backbone.; under model.student it may give every layer the same rate. See '
            'mmdet_sssd.optimizers.StudentNames'
        )
    return notes
