"""Arms: what their configs are, and what is refused."""

import copy
import functools
import re

import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError, recipes
from mmdet_sssd.commands.comparison.arms import arm_config, find_arm, read_definitions, read_roots
from mmdet_sssd.config_tree import value_at

STOCK = """
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
"""
DISTILLED = """
_base_ = ['./stock.py']
custom_imports = dict(imports=['mmdet_sssd'], allow_failed_imports=False)
model = dict(
    _delete_=True, type='SSSDDistiller', student=_base_.model, distill_coef=7.0,
    distill_loss=dict(type='SSIMLoss', window_size=5))
default_hooks = dict(
    distill_coef=dict(type='AdaptiveDistillCoefHook', policy='constant', factor=3.0),
    phases=dict(type='DistillPhasesHook', teacher_until=0.9))
"""


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('configs')
    (folder / 'stock.py').write_text(STOCK)
    (folder / 'distilled.py').write_text(DISTILLED)
    return folder


roots_of = functools.cache(read_roots)


def configs_of(path, *names, options=None, definitions=None):
    roots = read_roots(str(path), options) if options else roots_of(str(path))
    return [arm_config(find_arm(x, definitions or {}), roots, options or ()) for x in names]


def test_recipes_are_added_to_a_stock_config(configs):
    stock = Config.fromfile(configs / 'stock.py')
    baseline, config, gentle, paper, lgd = configs_of(
        configs / 'stock.py', 'baseline', 'config', 'gentle', 'paper', 'lgd'
    )
    assert baseline.model == stock.model
    assert config.to_dict() == gentle.to_dict()
    assert gentle.model == dict(recipes.gentle.model, student=stock.model)
    assert lgd.model == dict(recipes.lgd.model, student=stock.model)
    assert paper.default_hooks.phases == recipes.paper.hooks['phases']  # R-50 is pretrained
    for cfg in (gentle, paper, lgd):
        assert cfg.optim_wrapper == stock.optim_wrapper
        assert cfg.default_hooks.logger == stock.default_hooks.logger


def test_recipes_replace_the_distiller_of_config(configs):
    given = Config.fromfile(configs / 'distilled.py')
    of_stock = configs_of(configs / 'stock.py', 'baseline', 'gentle', 'paper', 'lgd')
    names = ('baseline', 'gentle', 'paper', 'lgd', 'config')
    *arms, config = configs_of(configs / 'distilled.py', *names)
    assert config.to_dict() == given.to_dict()
    for ours, theirs in zip(arms, of_stock, strict=True):
        assert ours.model == theirs.model
        hooks = ours.default_hooks.keys() - {'timer', 'visualization'}
        assert all(ours.default_hooks[x] == theirs.default_hooks[x] for x in hooks)


def test_a_change_changes_nothing_else(configs):
    names = ('paper', 'paper+dim=channel', 'paper+policy=constant')
    paper, channel, constant = configs_of(configs / 'stock.py', *names)
    assert channel.model.pop('distill_loss') == dict(dim='channel')
    assert channel.to_dict() == paper.to_dict()
    assert constant.default_hooks.distill_coef.policy == 'constant'
    constant.default_hooks.distill_coef.policy = 'step'
    assert constant.to_dict() == paper.to_dict()


@pytest.mark.parametrize(
    ('key', 'kept_by', 'lost_on'),
    [
        ('model.distill_coef', 'config', 'paper'),  # whose recipe replaces the distiller
        ('default_hooks.distill_coef.factor', 'config+policy=constant', 'paper'),
        ('default_hooks.distill_coef.policy', 'config', 'config+policy=constant'),  # which sets it
    ],
)
def test_an_option_without_effect_on_an_arm_is_refused(configs, key, kept_by, lost_on):
    options = {key: 4.0}
    (cfg,) = configs_of(configs / 'distilled.py', kept_by, options=options)
    assert value_at(cfg, key) == 4
    with pytest.raises(ConfigError, match=re.escape(f'{key} has no effect on arm {lost_on}')):
        configs_of(configs / 'distilled.py', lost_on, options=options)


@pytest.mark.parametrize('key', ['data_root', 'max_epochs', 'optim_wraper.optimizer.lr'])
def test_an_option_that_nothing_reads_is_refused(configs, key):
    with pytest.raises(ConfigError, match=f'^{key}: the config has'):
        configs_of(configs / 'stock.py', 'baseline', options={key: 3})


@pytest.mark.parametrize(
    ('name', 'key'),
    [
        ('stock', 'model.backbone.depth'),
        ('distilled', 'model.student.backbone.depth'),
        ('stock', 'default_hooks.checkpoint.interval'),
    ],
)
def test_an_option_reaches_all_arms(configs, name, key):
    arms = configs_of(configs / f'{name}.py', 'baseline', 'config', 'paper', options={key: 18})
    stock = key.replace('.student', '')
    student = stock.replace('model.', 'model.student.')
    assert value_at(arms[0], stock) == 18
    assert [value_at(cfg, student) for cfg in arms[1:]] == [18, 18]


def test_a_name_with_changes(configs):
    name = 'paper+dim=channel+tau=2+model.student.bbox_head.stacked_convs=2+teacher_head_grad.cls=0'
    (cfg,) = configs_of(configs / 'stock.py', name)
    assert cfg.model.distill_loss == dict(dim='channel', tau=2)
    assert cfg.model.teacher_head_grad == dict(cls=0)
    assert cfg.model.student.bbox_head.stacked_convs == 2


def test_arms_of_a_file(configs):
    (configs / 'arms.py').write_text(
        "arms = dict(mine=dict(base='paper', cfg_options={'model.distill_coef': 4.0}),\n"
        "            slow=dict(base='baseline', cfg_options=dict(stretch=1.5)),\n"
        "            short=dict(base='mine', cfg_options=dict(distill_coef=5.0)),\n"
        "            lost=dict(base='mine', cfg_options=dict(no_such_key=5.0)))"
    )
    definitions = read_definitions(str(configs / 'arms.py'))
    (mine,) = configs_of(configs / 'stock.py', 'mine', definitions=definitions)
    assert mine.model.distill_coef == 4
    (short,) = configs_of(configs / 'stock.py', 'short', definitions=definitions)
    assert short.model.distill_coef == 5
    with pytest.raises(ConfigError, match='the config has no no_such_key'):
        configs_of(configs / 'stock.py', 'lost', definitions=definitions)
    options = {'train_cfg': dict(max_epochs=12)}
    names = ('slow', 'slow+stretch=2', 'baseline')
    found = configs_of(configs / 'stock.py', *names, options=options, definitions=definitions)
    assert [cfg.train_cfg.max_epochs for cfg in found] == [18, 24, 12]
    assert [cfg.get('stretch') for cfg in found] == [1.5, 2, None]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('papers', r'unknown arm papers; did you mean paper\? Accepted: baseline, config'),
        ('paper+coef=3', r"an arm has the change 'coef=3'; accepted: .*distill_coef, .*, dim"),
        ('paper+tau', r"an arm has the change 'tau'; accepted: KEY=VALUE"),
        ('paper+load_from.x=a/b', r'without a slash'),
        ('orphan', r'unknown arm nobody, the base of arm orphan\. Accepted'),
        ('loop', r'unknown arm loop, the base of arm loop\. Accepted'),
    ],
)
def test_unknown_arms(name, message):
    definitions = {'orphan': dict(base='nobody'), 'loop': dict(base='loop')}
    with pytest.raises(ConfigError, match=message):
        find_arm(name, definitions)


@pytest.mark.parametrize(
    'text', ['arms = dict(x=dict(cfg_options={}))', 'y = 1', "arms = dict(paper=dict(base='lgd'))"]
)
def test_a_file_of_another_form(tmp_path, text):
    (tmp_path / 'arms.py').write_text(text)
    with pytest.raises(ConfigError, match=r'arms\.py'):
        read_definitions(str(tmp_path / 'arms.py'))


def test_a_change_that_finds_no_place_is_named(configs):
    with pytest.raises(ConfigError, match=r"model\.student\.type is 'RetinaNet', which has no"):
        configs_of(configs / 'stock.py', 'paper+model.student.type.x=1')


def test_all_arms_start_from_the_weights_of_config(configs):
    names = ('baseline', 'config', 'gentle', 'paper', 'baseline+load_from=None')
    for options in ({'load_from': 'a.pth'}, {'resume': True, 'load_from': 'b.pth'}):
        for config in ('stock', 'distilled'):
            found = configs_of(configs / f'{config}.py', *names[:4], options=options)
            expected = None if 'resume' in options else 'a.pth'  # what a resumed run has read
            assert {(x.get('load_from'), bool(x.get('resume'))) for x in found} == {
                (expected, False)
            }
    text = (configs / 'distilled.py').read_text()
    (configs / 'resumed.py').write_text(
        f"{text}\nload_from = 'b.pth'\nresume = True\nload_from_at_start = 'a.pth'"
    )
    found = configs_of(configs / 'resumed.py', *names)
    assert [x.get('load_from') for x in found] == ['a.pth'] * 4 + [None]


def test_rates_of_the_student_s_parts_are_those_of_all_arms(configs):
    text = (configs / 'distilled.py').read_text()
    keys = {'student.backbone': dict(lr_mult=0.1), 'terms': dict(lr_mult=2)}
    paramwise = f'optim_wrapper = dict(paramwise_cfg=dict(custom_keys={keys}))'
    (configs / 'rates.py').write_text(f'{text}\n{paramwise}')
    baseline, *others = configs_of(configs / 'rates.py', 'baseline', 'config', 'paper')
    found = baseline.optim_wrapper.paramwise_cfg.custom_keys
    assert found == {'backbone': dict(lr_mult=0.1)}
    assert all(x.optim_wrapper.paramwise_cfg.custom_keys == keys for x in others)


def test_recipes_stay_as_they_are_whatever_config_does_to_its_own(configs):
    lines = """
from mmdet_sssd.recipes import gentle as recipe
default_hooks = recipe.hooks
default_hooks['phases'].update(teacher_until=1.0)
default_hooks['checkpoint'].update(interval=7)
"""
    (configs / 'own.py').write_text(DISTILLED.partition('default_hooks')[0] + lines)
    before = copy.deepcopy(recipes.gentle.hooks)
    try:
        config, gentle, lgd = configs_of(configs / 'own.py', 'config', 'gentle', 'lgd')
    finally:  # the module is everybody's
        for name, hook in before.items():
            recipes.gentle.hooks[name].clear()
            recipes.gentle.hooks[name].update(hook)
    assert config.default_hooks.phases.teacher_until == 1
    assert gentle.default_hooks.phases.teacher_until == 0.5
    # that is of the run, not of the recipe
    assert [x.default_hooks.checkpoint.interval for x in (config, gentle, lgd)] == [7, 7, 7]
