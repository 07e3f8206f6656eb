"""Writes a config that distills a stock config's detector."""

import copy
import os.path as osp
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings
from torch.optim import SGD

from ...checks.annotations import check_annotations
from ...checks.dry_run import warnings_listed
from ...config_tree import PACKAGE, class_of, starts_pretrained, value_at, with_imports
from ...datasets import annotation_path, leaf_configs, read_coco, read_coco_summary, use_data
from ...errors import ConfigError, within
from ...models.distiller import is_distiller
from ...optimizers import StudentNames
from ...recipes import OUTSIDE, RECIPES
from .options import WrappingOptions
from .source import Expression, call, laid_out, source

ALL_RECIPES = {**RECIPES, **OUTSIDE}
SGD_DETACH = 1 / 3  # for a sixth, as with AdamW, gentle lost 0.8 and 1.3 AP in four epochs


def write_wrapped_config(
    stock: str, out: Path, options: WrappingOptions | None = None, build: bool = True
) -> list[str]:
    """Write a config that inherits a stock config and distills its model.

    Before it is moved to ``out``, the config is read back and, with ``build``, built.

    Args:
        stock: A config file, or a name like ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.
        out: The file to write; an existing file is replaced.
        options: Settings of the wrapped config. Defaults to none.
        build: Whether to build the distiller, and to load teachers' weights from files. Defaults to
            True.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        ConfigError: if the stock config cannot be read, has no detector, or has a distiller already;
            if an option cannot be applied; or if the distiller cannot be built.
    """
    options = options or WrappingOptions()
    if out.suffix != '.py' or out.resolve() == Path(stock).resolve():
        raise ConfigError(f'--out is {out}; accepted: a .py file other than the stock config')
    config = _read_stock(stock)
    data, unlabelled = _data_settings(config, options)
    base = stock if '::' in stock else _path_from(out.parent, stock)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f'.{out.stem}.draft.py')
    draft.write_text(_text(base, config, options, data, unlabelled), encoding='utf-8')
    try:
        wrapped = Config.fromfile(draft, import_custom_modules=False)
        if build:
            _check_builds(wrapped, stock)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return _notes(config, options, unlabelled)


def _path_from(folder: Path, file: str) -> str:
    """Name a file relative to a folder; absolutely where a link on the way leads elsewhere."""
    relative = osp.relpath(file, folder)
    is_same = (folder / relative).resolve() == Path(file).resolve()
    return Path(relative if is_same else osp.abspath(file)).as_posix()


def read_config(name: str) -> Config:
    """Read the whole config of a detector the way a config that inherits it would.

    Args:
        name: A config file, or a name like ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.

    Raises:
        ConfigError: if it cannot be read or inherited, or has no detector.
    """
    base = name if '::' in name else osp.abspath(name)
    with tempfile.TemporaryDirectory() as folder:
        heir = Path(folder) / 'heir.py'
        heir.write_text(f'_base_ = [{base!r}]\n', encoding='utf-8')
        try:
            config = Config.fromfile(heir, import_custom_modules=False)
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
    if 'type' not in (config.get('model') or {}):
        raise ConfigError(f'{name} has no model.type; accepted: the whole config of a detector')
    return config


def distilled_config(
    stock: ConfigDict,
    recipes: Sequence[str],
    teachers: dict[str, dict] | None = None,
    masks: bool = False,
) -> ConfigDict:
    """Add recipes to a stock detector's config.

    A backbone that starts from random weights is not frozen, whatever the recipes say; with SGD from
    random weights, a teacher that has to lead learns for a third of the run first (see
    docs/benchmarks/studies.md).

    Args:
        stock: The whole config; not changed.
        recipes: Names of recipes. The first says what the distiller is, the others add their terms.
        teachers: Configs of the teachers from outside, by name.
        masks: Whether the implicit teacher uses instance masks.
    """
    config = copy.deepcopy(stock)
    config.custom_imports = with_imports(stock, PACKAGE)
    model, hooks = _additions(stock, recipes, teachers, masks)
    config.model = {**model, 'student': config.model}
    default_hooks = config.setdefault('default_hooks', ConfigDict())
    for name, hook in hooks.items():
        default_hooks[name] = {**(default_hooks.get(name) or {}), **hook}
    return config


def _additions(
    stock: ConfigDict, recipes: Sequence[str], teachers: dict[str, dict] | None, masks: bool
) -> tuple[dict, dict]:
    """Copy what recipes add to a stock config: settings of the distiller around it, and hooks."""
    parts = [ALL_RECIPES[name] for name in recipes]
    model, hooks = dict(parts[0].model), {}
    terms = {name: term for x in parts for name, term in x.model.get('terms', {}).items()}
    model.update({key: x for key, x in dict(teachers=teachers, terms=terms).items() if x})
    if masks:
        model['teacher'] = {**model.get('teacher', {}), 'use_masks': True}
    for part in reversed(parts):
        hooks.update(part.hooks)
    model, hooks = copy.deepcopy((model, hooks))
    phases = hooks.get('phases', {})
    if not starts_pretrained(stock):
        phases.pop('freeze_backbone', None)
        if phases.get('teacher_must_lead') and _is_by_sgd(stock):
            phases['detach_student'] = SGD_DETACH
    return model, hooks


def _is_by_sgd(stock: ConfigDict) -> bool:
    return class_of(value_at(stock, 'optim_wrapper.optimizer') or {}, OPTIMIZERS) is SGD


def _read_stock(stock: str) -> ConfigDict:
    """Read a stock detector's config as the wrapped one will inherit it."""
    config = read_config(stock)
    if is_distiller(config.model):
        raise ConfigError(
            f'{stock} has a distiller already (model.type is {config.model.type}); inherit it, and '
            'override model.student and the hooks there'
        )
    return config._cfg_dict


def _data_settings(
    config: ConfigDict, options: WrappingOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Apply ``use_data`` to a stock config; return its arguments, and those of ``with_unlabelled``."""
    data = dict(options.data)
    if options.masks:
        data['masks'] = True
    use_data(config, **data)
    datasets = list(leaf_configs(config, 'train_dataloader.dataset'))
    if datasets and 'classes' not in data and data.keys() & {'data_root', 'train_ann'}:
        set_by = '--data-root and --train-ann, read for the classes unless --classes gives them'
        path = annotation_path(datasets[0][1])
        data['classes'], _ = read_coco_summary(*osp.split(path), set_by)
        use_data(config, classes=data['classes'])
    if not options.unlabelled:
        return data, {}
    if len(datasets) != 1:
        raise ConfigError(
            f'train_dataloader has {len(datasets)} data sets; accepted with --unlabelled: one'
        )
    return data, _unlabelled_settings(datasets[0][1], options)


def _unlabelled_settings(dataset: ConfigDict, options: WrappingOptions) -> dict[str, Any]:
    """Find the arguments of ``with_unlabelled`` that make both kinds of images about as many."""
    root = dataset.get('data_root') or ''
    labelled, unlabelled = (
        read_coco(osp.join(root, file), f'--data-root and {option}')
        for file, option in (
            (dataset.ann_file, '--train-ann'),
            (options.unlabelled, '--unlabelled'),
        )
    )
    num_labelled, num_unlabelled = (len(x['images']) for x in (labelled, unlabelled))
    if (dataset.get('filter_cfg') or {}).get('filter_empty_gt'):
        num_labelled = len({x.get('image_id') for x in labelled['annotations']})
    if (indices := dataset.get('indices')) is not None:
        num_labelled = min(num_labelled, abs(indices) if isinstance(indices, int) else len(indices))
    settings = dict(
        ann_file=options.unlabelled,
        img=options.unlabelled_img,
        repeat=max(1, round(num_unlabelled / max(num_labelled, 1))),
    )
    return {name: x for name, x in settings.items() if x}


def _text(
    base: str, config: ConfigDict, options: WrappingOptions, data: dict, unlabelled: dict
) -> str:
    """Write a config that takes its settings from the first recipe, but for those that differ."""
    name = options.recipes[0]
    recipe = ALL_RECIPES[name]
    model, hooks = _additions(config, options.recipes, options.teachers, options.masks)
    model = {key: x for key, x in model.items() if x != recipe.model.get(key)}
    hooks = {key: x for key, x in hooks.items() if x != recipe.hooks.get(key)}
    used = ['use_data'] * bool(data) + ['with_unlabelled'] * bool(unlabelled)
    stock, of_recipe = Expression('_base_'), Expression('recipe.hooks')
    lines = [f'_base_ = {base!r}\n']
    if used:
        lines.append(f'from mmdet_sssd.datasets import {", ".join(used)}  # noqa: E402')
    lines.append(f'from mmdet_sssd.recipes import {name} as recipe  # noqa: E402\n')
    # of the run that wrote the stock config down
    if config.get('work_dir'):
        lines.append('work_dir = None')
    if config.get('resume'):
        lines.append(f'resume, load_from = False, {config.get("load_from_at_start")!r}')
    if data:
        lines.append(call('use_data', stock, **data))
    if unlabelled:
        dataset = Expression('_base_.train_dataloader.dataset')
        lines.append(f'{dataset} = {call("with_unlabelled", dataset, **unlabelled)}')
    student = Expression('_base_.model')
    distiller = call('dict', Expression('recipe.model'), _delete_=True, student=student, **model)
    lines += [
        f'custom_imports = {source(with_imports(config, PACKAGE))}',
        f'model = {distiller}',
        f'default_hooks = {call("dict", of_recipe, **hooks) if hooks else of_recipe}',
    ]
    return laid_out('\n'.join(lines))


def _check_builds(config: Config, stock: str) -> None:
    """Build the distiller as a runner would, and load teachers' local weights."""
    init_default_scope(config.get('default_scope', 'mmdet'))
    try:
        import_modules_from_strings(**config.custom_imports)
        model = copy.deepcopy(config.model)
        model.setdefault('data_preprocessor', config.get('data_preprocessor'))
        for teacher in MODELS.build(model).teachers.values():
            checkpoint = getattr(teacher, 'checkpoint', None)
            if checkpoint not in (None, 'default') and '://' not in checkpoint:
                with within(*teacher.config_keys):
                    teacher.load_weights()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'the distiller of {stock} cannot be built ({type(error).__name__}: {error}); --no-build '
            'writes the config anyway'
        ) from error


def _why_gentle(stock: ConfigDict) -> str:
    """Say what speaks for the gentle recipe, and against it (docs/benchmarks.md)."""
    if starts_pretrained(stock):
        return (
            'recipe gentle: from trained weights paper and lgd lost AP, and its teacher is mostly '
            'behind the detector and stops, so expect the AP of stock; for a gain use images without '
            'labels (--teacher, --unlabelled)'
        )
    if _is_by_sgd(stock):
        return (
            'recipe gentle, whose teacher here learns for a third of the run before it distills: with '
            'SGD from random weights it cost AP in a short run when it began after a sixth'
        )
    return (
        'recipe gentle, which suits thousands of images from random weights best; with hundreds and a '
        'short schedule --recipe paper gained more'
    )


def _notes(stock: ConfigDict, options: WrappingOptions, unlabelled: dict) -> list[str]:
    """Collect notes for the user of a wrapped config."""
    notes = [] if options.recipe or options.recipes != ('gentle',) else [_why_gentle(stock)]
    if options.teacher and not options.method:
        does = 'labels images' if unlabelled else 'teaches its features (--method structural_kd)'
        notes.append(f'the teacher {does}; --method sad compares class logits of dense heads')
    if unlabelled:
        times = f'{unlabelled["repeat"]} times' if unlabelled['repeat'] > 1 else 'once'
        notes.append(
            f'an epoch has each labelled image {times}, the others once, so that both are about as '
            'many; train_cfg says how many epochs'
        )
    phases = ALL_RECIPES[options.recipes[0]].hooks.get('phases', {})
    if 'freeze_backbone' in phases and not starts_pretrained(stock):
        notes.append(
            'the backbone has no init_cfg with weights, so it is not frozen at first; if its class '
            "loads weights itself, add freeze_backbone=1 / 9 to default_hooks' phases"
        )
    if options.data.keys() & {'data_root', 'train_ann'}:
        try:
            with warnings_listed() as warnings:
                check_annotations(stock)
        except ConfigError as error:
            warnings.append(f'it does not train yet: {error}')
        notes += warnings
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
