"""The arms of a comparison: ways to train one detector, each a config derived from the user's."""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config, DictAction

from ...checkpoints import stock_config
from ...checks.settings import check_overrides
from ...config_tree import config_of, nested_configs, value_at
from ...errors import ConfigError, did_you_mean
from ...models.distiller import is_distiller
from ...recipes import OUTSIDE, RECIPES
from ..wrapping import distilled_config, read_config
from .schedule import stretched

BASELINE = 'baseline'
DEFAULT_RECIPE = 'gentle'
ROOTS = (BASELINE, 'config', *RECIPES, *OUTSIDE)
"""What arms start from: the detector alone, CONFIG, or a recipe."""

KEYS = {'base', 'cfg_options'}
PLACES = {
    'model': (
        *('distill_coef', 'economy', 'start_level', 'reuse_assignment'),
        *('teacher_loss_weight', 'teacher_head_grad'),
    ),
    'model.distill_loss': ('dim', 'tau'),
    'model.teacher': ('detach_appearance', 'soft_regions', 'class_vectors'),
    'default_hooks.distill_coef': ('ratio', 'policy', 'factor'),
    'default_hooks.phases': (
        'detach_student',
        'freeze_backbone',
        'teacher_until',
        'teacher_must_lead',
    ),
    'optim_wrapper.optimizer': ('lr',),
}
SHORT_NAMES = {
    **{name: f'{place}.{name}' for place, names in PLACES.items() for name in names},
    'loss': 'model.distill_loss.type',
    'context_box': 'model.teacher.add_context_box',
    'stretch': 'stretch',
    'load_from': 'load_from',
}
"""Short names of config keys, for changes of arms."""


@dataclass(frozen=True)
class Arm:
    """A way to train the detector.

    Attributes:
        name: Name in folders and tables.
        root: The config it starts from, one of :data:`ROOTS`.
        changes: Changes to that config, by dotted key, in order. ``stretch`` makes the run and its
            schedule so many times as long.
    """

    name: str
    root: str
    changes: tuple[dict[str, Any], ...] = ()


def read_definitions(arms_file: str | None = None) -> dict[str, dict]:
    """Read the arms that a file defines; none without a file.

    An arm has ``base``, another arm or one of :data:`ROOTS`, and perhaps ``cfg_options``, changes to
    the base's config as in ``--cfg-options``. There, a dict with another type replaces the one it
    would be merged into, and ``stretch=1.5`` makes the run and its schedule 1.5 times as long.

    Args:
        arms_file: A config file with ``arms = dict(name=dict(base=…, cfg_options={…}))``.

    Raises:
        ConfigError: if the file does not define arms in this form, or one has the name of a root.
    """
    if arms_file is None:
        return {}
    own = config_of(arms_file).get('arms')
    if not isinstance(own, dict) or not own:
        raise ConfigError(f'{arms_file} has no arms; accepted: arms = dict(name=dict(base=…), …)')
    if taken := set(own) & {*ROOTS}:
        raise ConfigError(
            f'{arms_file} defines {min(taken)}, an arm of compare; give it another name'
        )
    for name, definition in own.items():
        unknown = sorted(set(definition) - KEYS) if isinstance(definition, dict) else [definition]
        if unknown or not definition.get('base') or not re.fullmatch(r'[\w.-]+', name):
            raise ConfigError(
                f'{arms_file}: arm {name!r} is {definition!r}; accepted: a name of letters, digits, '
                '_, - and ., and a dict with base and perhaps cfg_options'
            )
    return own.to_dict()


def find_arm(name: str, definitions: dict[str, dict]) -> Arm:
    """Look up an arm.

    Args:
        name: A defined name, perhaps with changes: ``'paper+distill_coef=3'``,
            ``'paper+dim=channel+tau=2'``. Their keys are :data:`SHORT_NAMES` or dotted keys.
        definitions: The defined arms.

    Raises:
        ConfigError: if the name or a key is unknown, or an arm is its own base.
    """
    defined, *settings = name.split('+')
    changes = [_read_setting(setting) for setting in settings]
    seen = []
    while defined not in ROOTS:
        if defined not in definitions or defined in seen:
            place = f', the base of arm {seen[-1]}' if seen else ''
            known = [*ROOTS, *definitions]
            hint = did_you_mean(defined, {*known} - {defined}) or '.'
            raise ConfigError(
                f'unknown arm {defined}{place}{hint} Accepted: {", ".join(known)}, each also with '
                'changes like paper+distill_coef=3'
            )
        seen.append(defined)
        definition = definitions[defined]
        options = definition.get('cfg_options') or {}
        changes.insert(0, {_long_name(key): value for key, value in options.items()})
        defined = definition['base']
    return Arm(name, defined, tuple(changes))


def _read_setting(setting: str) -> dict[str, Any]:
    key, equals, text = setting.partition('=')
    if not equals or '/' in setting or not ('.' in key or key in SHORT_NAMES):
        raise ConfigError(
            f'an arm has the change {setting!r}; accepted: KEY=VALUE without a slash, where KEY is a '
            f'dotted key of the config or one of {", ".join(SHORT_NAMES)}'
        )
    return {_long_name(key): DictAction._parse_iterable(text)}


def _long_name(key: str) -> str:
    first, dot, rest = key.partition('.')
    return SHORT_NAMES.get(first, first) + dot + rest


def read_roots(config: str, cfg_options: dict[str, Any] | None = None) -> dict[str, Config]:
    """Read the configs that arms start from, by :data:`ROOTS`.

    Recipes are added to the detector alone, whatever its distiller; ``config`` is CONFIG itself or, of
    a stock detector, what ``wrap`` makes of it. Those of a teacher from outside need CONFIG's, and
    ``semi`` its images without labels; they are left out where it has none. All start from CONFIG's
    ``load_from``.

    Args:
        config: A config file or name, of a stock detector or a distiller.
        cfg_options: Changes to it, by dotted key.

    Raises:
        ConfigError: if the config cannot be read, changed or distilled, or a change has no effect.
    """
    cfg = read_config(config)
    check_overrides(cfg, cfg_options or {})
    _merge(cfg, cfg_options or {}, '--cfg-options')
    if cfg.get('resume'):  # as in the config that a resumed run writes down
        cfg.update(resume=False, load_from=cfg.get('load_from_at_start'))
    is_distilled = is_distiller(cfg.model)
    stock = stock_config(cfg) if is_distilled else cfg
    stock.load_from = cfg.get('load_from')
    recipes = {x: Config(distilled_config(stock._cfg_dict, [x])) for x in RECIPES}
    recipes.update(_outside_roots(cfg, stock) if is_distilled else {})
    for recipe in recipes.values():  # whose custom_keys may name ``student.…``, unlike stock's
        recipe.optim_wrapper = copy.deepcopy(cfg.get('optim_wrapper'))
    return {
        BASELINE: stock,
        'config': cfg if is_distilled else recipes[DEFAULT_RECIPE],
        **recipes,
    }


def _outside_roots(cfg: Config, stock: Config) -> dict[str, Config]:
    """Make the configs of the recipes whose teacher a distiller's config has."""
    roots = {}
    for name, recipe in OUTSIDE.items():
        teacher = cfg.model.get('teachers', {}).get(recipe.TEACHER)
        if teacher:
            teachers = {recipe.TEACHER: teacher}
            roots[name] = Config(distilled_config(stock._cfg_dict, [name], teachers))
    if 'semi' in roots and cfg.get('train_dataloader') == stock.get('train_dataloader'):
        del roots['semi']
    elif 'semi' in roots:
        roots['semi'].train_dataloader = copy.deepcopy(cfg.train_dataloader)
    return roots


def arm_config(arm: Arm, roots: dict[str, Config], cfg_options: Iterable[str] = ()) -> Config:
    """Make the config of an arm.

    Args:
        arm: The arm.
        roots: The result of :func:`read_roots`.
        cfg_options: Keys that were changed in the roots already.

    Raises:
        ConfigError: if one of these keys has no effect on the arm, as it or its recipe sets the key
            too, or if a change cannot be applied or has none.
    """
    if arm.root not in roots:
        option = dict(semi='unlabelled', backbone='backbone-teacher').get(arm.root, 'teacher')
        raise ConfigError(
            f'arm {arm.name} needs what wrap --{option} writes; compare such a config'
        )
    cfg = copy.deepcopy(roots[arm.root])
    for changes in arm.changes:
        check_overrides(cfg, {key: x for key, x in changes.items() if key != 'stretch'})
        _merge(cfg, changes, f'arm {arm.name}')
    for key in cfg_options:
        _check_has_effect(key, arm, cfg, roots)
    if any('stretch' in changes for changes in arm.changes):
        return stretched(cfg, cfg.stretch)
    return cfg


def _check_has_effect(key: str, arm: Arm, cfg: Config, roots: dict[str, Config]) -> None:
    """Refuse an option that an arm's changes, or the recipe that it starts from, replace."""
    given, place = roots[arm.root], key
    is_stock = roots['config'] is roots[DEFAULT_RECIPE]
    if arm.root in RECIPES | OUTSIDE and not is_stock:
        given = roots['config']  # whose distiller the recipe replaces
    elif arm.root in RECIPES:
        given, place = roots[BASELINE], re.sub(r'^model\.', 'model.student.', key)
    if value_at(cfg, place) != value_at(given, key):
        raise ConfigError(
            f'--cfg-options {key} has no effect on arm {arm.name}, which sets it; drop one of the '
            f'two, or compare {arm.name}+{key}=VALUE'
        )


def _merge(cfg: Config, changes: dict[str, Any], where: str) -> None:
    """Merge changes like ``--cfg-options``; a module of another type replaces the old one."""
    changes = copy.deepcopy(changes)
    for key, value in changes.items():
        if isinstance(value, dict) and value_at(cfg, f'{key}.type') not in (
            None,
            value.get('type'),
        ):
            value['_delete_'] = True
    try:
        cfg.merge_from_dict(changes)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f'{where}: {", ".join(changes)} cannot be set ({error})') from error
    for _, part in nested_configs(cfg._cfg_dict):
        part.pop('_delete_', None)  # mmengine keeps it if there was nothing to delete
