"""Writes a config that distills a stock config's detector."""

import copy
import inspect
import os.path as osp
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmdet.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry, init_default_scope
from mmengine.utils import import_modules_from_strings

from ...config_tree import PACKAGE, nested_configs, value_at, with_imports
from ...datasets import with_unlabelled
from ...errors import ConfigError, within
from ...models.distiller import is_distiller
from ...optimizers import StudentNames
from ...recipes import OUTSIDE, RECIPES, run
from .changes import Changes, WrappingOptions, stock_changes, unlabelled_settings
from .source import Expression, assignment

ALL_RECIPES = {**RECIPES, **OUTSIDE}


def write_wrapped_config(
    stock: str, out: Path, options: WrappingOptions | None = None, build: bool = True
) -> list[str]:
    """Write a config that inherits a stock config and distills its model.

    Before it is moved to ``out``, the config is read back, compared with what it should be and, with
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
    changes = stock_changes(stock_config, options)
    changed = _changed(stock_config, changes)
    unlabelled = unlabelled_settings(changed, options)
    if unlabelled:
        loader = changed.train_dataloader
        loader.dataset = with_unlabelled(loader.dataset, **unlabelled)
    expected = distilled_config(changed, options.recipes, options.teachers, options.masks)
    if options.explicit:
        _add_defaults(expected, options)
    base = stock if '::' in stock else Path(osp.relpath(stock, out.parent)).as_posix()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f'.{out.stem}.draft.py')
    write = _explicit_text if options.explicit else _text
    draft.write_text(
        write(base, _changes_lines(changes, unlabelled), expected, options), encoding='utf-8'
    )
    try:
        _check_draft(draft, expected, stock, build)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return _notes(stock_config, options, unlabelled)


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


def distilled_config(
    stock: ConfigDict,
    recipes: Sequence[str],
    teachers: dict[str, dict] | None = None,
    masks: bool = False,
) -> ConfigDict:
    """Add recipes to a stock detector's config.

    A backbone that starts from random weights is not frozen, whatever the recipes say.

    Args:
        stock: The whole config; not changed.
        recipes: Names of recipes. The first says what the distiller is, the others add their terms.
        teachers: Configs of the teachers from outside, by name.
        masks: Whether the implicit teacher uses instance masks.
    """
    config = copy.deepcopy(stock)
    config.custom_imports = with_imports(stock, PACKAGE)
    model, hooks = _combined(recipes, teachers)
    config.model = {**model, 'student': config.model}
    if masks:
        config.model.teacher = {**config.model.get('teacher', {}), 'use_masks': True}
    default_hooks = config.setdefault('default_hooks', ConfigDict())
    for name, hook in hooks.items():
        default_hooks[name] = {**(default_hooks.get(name) or {}), **hook}
    if not starts_pretrained(stock):
        default_hooks.get('phases', {}).pop('freeze_backbone', None)
    return config


def _combined(recipes: Sequence[str], teachers: dict[str, dict] | None = None) -> tuple[dict, dict]:
    """Copy the first recipe's model and hooks, with the others' terms and hooks, and teachers."""
    parts = [ALL_RECIPES[name] for name in recipes]
    model, hooks = dict(parts[0].model), {}
    terms = {name: term for x in parts for name, term in x.model.get('terms', {}).items()}
    model.update({key: x for key, x in dict(teachers=teachers, terms=terms).items() if x})
    for part in reversed(parts):
        hooks.update(part.hooks)
    return copy.deepcopy((model, hooks))


def starts_pretrained(stock: Config | ConfigDict) -> bool:
    """Tell whether a config's detector, or a part of it, starts from trained weights."""
    return bool(stock.get('load_from')) or any(
        part.get('type') == 'Pretrained' or part.get('pretrained')
        for _, part in nested_configs(stock.model)
    )


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


def _changed(stock: ConfigDict, changes: Changes) -> ConfigDict:
    changed = copy.deepcopy(stock)
    for key, value in changes.items():
        place, _, name = key.rpartition('.')
        value_at(changed, place)[name] = value
    if (classes := _named_classes(changes)) is not None:
        changed.classes = classes
    return changed


def _text(base: str, changes: Sequence[str], expected: ConfigDict, options: WrappingOptions) -> str:
    """Write a config that takes its settings from the first recipe, but for those that differ."""
    name = options.recipes[0]
    recipe = ALL_RECIPES[name]
    model = {None: Expression('recipe.model'), '_delete_': True}
    model['student'] = Expression('_base_.model')
    for key, value in expected.model.items():
        if key != 'student' and value != recipe.model.get(key):
            model[key] = value
    hooks, own = Expression('recipe.hooks'), _own_hooks(expected, options)
    other = {key: hook for key, hook in own.items() if hook != recipe.hooks.get(key)}
    return _joined(
        base,
        f'from mmdet_sssd.recipes import {name} as recipe  # noqa: E402\n',
        *changes,
        assignment('custom_imports', expected.custom_imports),
        assignment('model', model),
        assignment('default_hooks', {None: hooks, **other} if other else hooks),
    )


def _explicit_text(
    base: str, changes: Sequence[str], expected: ConfigDict, options: WrappingOptions
) -> str:
    """Write a config with all of the recipes' settings, and the defaults of others."""
    model = {'_delete_': True, 'type': None, 'student': None, **expected.model}
    model['student'] = Expression('_base_.model')
    hooks = {name: expected.default_hooks[name] for name in _combined(options.recipes)[1]}
    return _joined(
        base,
        *changes,
        assignment('custom_imports', expected.custom_imports),
        assignment('model', model),
        assignment('default_hooks', hooks),
    )


def _own_hooks(expected: ConfigDict, options: WrappingOptions) -> dict:
    """Look up the recipes' hooks but for those of every run, which may add to the stock config's."""
    names = [name for name in _combined(options.recipes)[1] if name not in run.hooks]
    return {name: expected.default_hooks[name] for name in names}


def _add_defaults(expected: ConfigDict, options: WrappingOptions) -> None:
    """Add the defaults of the distiller and of the hooks that a recipe is about, None excepted."""
    expected.model = _with_defaults(expected.model, MODELS)
    for name, hook in _own_hooks(expected, options).items():
        expected.default_hooks[name] = _with_defaults(hook, HOOKS)


def _with_defaults(config: dict, registry: Registry) -> dict:
    parameters = inspect.signature(registry.get(config['type'])).parameters
    empty = (inspect.Parameter.empty, None)
    defaults = {name: x.default for name, x in parameters.items() if x.default not in empty}
    return {**config, **{name: x for name, x in defaults.items() if name not in config}}


def _joined(base: str, *lines: str) -> str:
    return '\n'.join([f'_base_ = {base!r}\n', *lines]) + '\n'


def _changes_lines(changes: Changes, unlabelled: dict) -> list[str]:
    """Write the changes to the stock config, the class names once."""
    if not (changes or unlabelled):
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
    imported = []
    if unlabelled:
        imported = ['from mmdet_sssd.datasets import with_unlabelled  # noqa: E402\n']
        dataset = '_base_.train_dataloader.dataset'
        settings = ', '.join(f'{name}={value!r}' for name, value in unlabelled.items())
        lines.append(f'{dataset} = with_unlabelled(\n    {dataset}, {settings}\n)')
    comment = '# Changed in every place: mmengine resolves values when it reads the stock config.'
    return [*imported, comment, *lines, '']


def _named_classes(changes: Changes) -> tuple[str, ...] | None:
    return next((v['classes'] for k, v in changes.items() if k.endswith('.metainfo')), None)


def _check_draft(path: Path, expected: ConfigDict, stock: str, build: bool) -> None:
    """Read the draft, compare it with the expected config, and build the distiller."""
    config = Config.fromfile(path, import_custom_modules=False)
    other = [x for x in sorted({*config, *expected}) if config.get(x) != expected.get(x)]
    if other:
        raise ConfigError(
            f'{stock} cannot be wrapped: {", ".join(other)} would change too; nothing was written'
        )
    if build:
        _check_builds(config, stock)


def _check_builds(config: Config, stock: str) -> None:
    """Build the distiller as a runner would, and load teachers' local weights."""
    init_default_scope(config.get('default_scope', 'mmdet'))
    try:
        import_modules_from_strings(**config.custom_imports)
        model = copy.deepcopy(config.model)
        model.setdefault('data_preprocessor', config.get('data_preprocessor'))
        for teacher in MODELS.build(model).teachers.values():
            if '://' not in (getattr(teacher, 'checkpoint', None) or '://'):
                with within(*teacher.place):
                    teacher.load_weights()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'the distiller of {stock} cannot be built ({type(error).__name__}: {error}); --no-build '
            'writes the config anyway'
        ) from error


def _notes(stock: ConfigDict, options: WrappingOptions, unlabelled: dict) -> list[str]:
    """Collect notes for the user of a wrapped config."""
    notes = []
    if options.teacher and not options.method:
        does = 'labels images' if unlabelled else 'teaches its features (--method structural_kd)'
        notes.append(f'the teacher {does}; --method sad compares class logits of dense heads')
    if unlabelled:
        notes.append(
            f'an epoch has each labelled image {unlabelled["repeat"]} times, the others once, so that '
            'both are about as many; train_cfg says how many epochs'
        )
    if not starts_pretrained(stock) and 'freeze_backbone' in _combined(options.recipes)[1].get(
        'phases', {}
    ):
        notes.append(
            'the backbone has no init_cfg with weights, so it is not frozen at first; if its class '
            "loads weights itself, add freeze_backbone=1 / 9 to default_hooks' phases"
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
