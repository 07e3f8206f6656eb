"""Arms: what their configs are, and what is refused."""

import copy
import functools

import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.arms import (
    arm_config,
    find_arm,
    read_definitions,
    read_roots,
    sweep_arms,
)

BUILTIN = read_definitions()
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
    distill_coef=dict(type='AdaptiveDistillCoefHook', policy='inverse_lr', max_decays=3),
    detach_student=dict(type='DetachStudentHook'))
"""


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('configs')
    (folder / 'stock.py').write_text(STOCK)
    (folder / 'distilled.py').write_text(DISTILLED)
    return folder


roots_of = functools.cache(read_roots)


def configs_of(path, *names, options=None, definitions=BUILTIN):
    roots = read_roots(str(path), options) if options else roots_of(str(path))
    return [arm_config(find_arm(x, definitions), roots, options or ()) for x in names]


def test_arms_of_a_stock_config(configs):
    stock = Config.fromfile(configs / 'stock.py')
    baseline, sssd, lgd = configs_of(configs / 'stock.py', 'baseline', 'sssd', 'lgd')
    assert baseline.model == stock.model
    assert sssd.model.student == stock.model
    assert sssd.model.distill_loss == dict(type='JSDistanceLoss')
    assert sssd.default_hooks.freeze_backbone.type == 'FreezeBackboneHook'  # R-50 is pretrained
    assert lgd.model.teacher.soft_regions is False
    assert lgd.model.distill_loss == dict(type='NormedMSELoss')
    assert sssd.optim_wrapper == lgd.optim_wrapper == stock.optim_wrapper


def test_config_is_the_distiller_of_config_or_what_wrap_would_add(configs):
    config, gentle = configs_of(configs / 'stock.py', 'config', 'gentle')
    assert config.to_dict() == gentle.to_dict()
    config, given = configs_of(configs / 'distilled.py', 'config', 'distiller')
    assert config.to_dict() == given.to_dict()


def test_a_detector_from_random_weights_has_no_frozen_backbone(configs):
    options = {'model.backbone.init_cfg': None}
    (sssd,) = configs_of(configs / 'stock.py', 'sssd', options=options)
    assert 'freeze_backbone' not in sssd.default_hooks
    assert 'detach_student' in sssd.default_hooks


def test_arms_of_a_config_with_a_distiller(configs):
    given = Config.fromfile(configs / 'distilled.py')
    stock = Config.fromfile(configs / 'stock.py')
    names = ('baseline', 'config', 'sssd', 'lgd')
    baseline, config, sssd, lgd = configs_of(configs / 'distilled.py', *names)
    assert baseline.model == stock.model
    assert 'detach_student' not in baseline.default_hooks
    assert config.model == given.model
    assert config.default_hooks == given.default_hooks
    assert sssd.model.distill_loss == dict(type='JSDistanceLoss')  # nothing of SSIMLoss is left
    assert lgd.model.distill_loss == dict(type='NormedMSELoss')
    assert sssd.model.distill_coef == lgd.model.distill_coef == 7
    assert sssd.default_hooks.distill_coef == dict(
        type='AdaptiveDistillCoefHook', policy='step', max_decays=3
    )


def test_the_papers_arms_undo_the_gentle_recipe(configs):
    (gentle,) = configs_of(configs / 'stock.py', 'gentle')
    gentle.dump(configs / 'gentle.py')
    sssd, paper, lgd = configs_of(configs / 'gentle.py', 'sssd', 'sssd_paper', 'lgd')
    (of_stock,) = configs_of(configs / 'stock.py', 'sssd')
    assert (sssd.model.economy, sssd.default_hooks.teacher_schedule.until) == (True, 0.5)
    assert sssd.default_hooks.distill_coef.ratio == 0.25
    for cfg in (paper, lgd):
        assert (cfg.model.economy, cfg.model.teacher_head_grad) == (False, 1)
        assert cfg.default_hooks.distill_coef.pop('ratio') is None
        assert cfg.default_hooks.pop('teacher_schedule').until == 1
        cfg.default_hooks.freeze_backbone.pop('first')  # the arm gentle, dumped above, has one of 0
    assert paper.default_hooks == of_stock.default_hooks
    assert {**of_stock.model, 'economy': False, 'teacher_head_grad': 1} == paper.model


def test_options_reach_all_arms(configs):
    options = {'model.student.backbone.depth': 18, 'optim_wrapper.optimizer.lr': 0.5}
    baseline, config = configs_of(configs / 'distilled.py', 'baseline', 'config', options=options)
    assert baseline.model.backbone.depth == config.model.student.backbone.depth == 18
    assert baseline.optim_wrapper.optimizer.lr == config.optim_wrapper.optimizer.lr == 0.5


def test_an_option_that_an_arm_would_override_is_refused(configs):
    options = {'default_hooks.distill_coef.policy': 'step'}
    with pytest.raises(
        ConfigError, match=r'policy has no effect on arm lgd, which sets default_hooks'
    ):
        configs_of(configs / 'distilled.py', 'lgd', options=options)
    options = {'default_hooks.distill_coef.factor': 3.0}  # beside what the arm sets
    (sssd,) = configs_of(configs / 'distilled.py', 'sssd_fixed', options=options)
    assert sssd.default_hooks.distill_coef.factor == 3


def test_a_name_with_changes(configs):
    name = 'sssd+dim=channel+tau=2+model.student.bbox_head.stacked_convs=2+teacher_head_grad.cls=0'
    (cfg,) = configs_of(configs / 'stock.py', name)
    assert cfg.model.distill_loss == dict(type='JSDistanceLoss', dim='channel', tau=2)
    assert cfg.model.teacher_head_grad == dict(cls=0)
    assert cfg.model.student.bbox_head.stacked_convs == 2


def test_a_sweep_is_an_arm_for_each_value():
    assert sweep_arms('distill_coef=1,10', 'lgd') == ['lgd+distill_coef=1', 'lgd+distill_coef=10']
    with pytest.raises(ConfigError, match=r"--sweep is 'tau'; accepted: KEY=VALUE"):
        sweep_arms('tau', 'sssd')


def test_arms_of_a_file(configs):
    (configs / 'arms.py').write_text(
        "arms = dict(mine=dict(base='sssd_channel', cfg_options={'model.distill_coef': 4.0}),\n"
        "            slow=dict(base='baseline', cfg_options=dict(stretch=1.5)))"
    )
    definitions = read_definitions(str(configs / 'arms.py'))
    (mine,) = configs_of(configs / 'stock.py', 'mine', definitions=definitions)
    assert (mine.model.distill_coef, mine.model.distill_loss.dim) == (4, 'channel')
    options = {'train_cfg': dict(max_epochs=12)}
    names = ('slow', 'slow+stretch=2', 'baseline')
    found = configs_of(configs / 'stock.py', *names, options=options, definitions=definitions)
    assert [cfg.train_cfg.max_epochs for cfg in found] == [18, 24, 12]
    assert [cfg.get('stretch') for cfg in found] == [1.5, 2, None]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (
            'ssd',
            r'unknown arm ssd; did you mean sssd\? Accepted: baseline, config, gentle, papers, sssd',
        ),
        ('sssd+coef=3', r"an arm has the change 'coef=3'; accepted: .*distill_coef, loss, dim"),
        ('sssd+tau', r"an arm has the change 'tau'; accepted: KEY=VALUE"),
        ('sssd+load_from.x=a/b', r'without a slash'),
        ('orphan', r'unknown arm nobody, the base of arm orphan\. Accepted'),
        ('loop', r'unknown arm loop, the base of arm loop\. Accepted'),
    ],
)
def test_unknown_arms(name, message):
    definitions = {**BUILTIN, 'orphan': dict(base='nobody'), 'loop': dict(base='loop')}
    with pytest.raises(ConfigError, match=message):
        find_arm(name, definitions)


@pytest.mark.parametrize('text', ['arms = 3', 'arms = dict(x=dict(cfg_options={}))', 'y = 1'])
def test_a_file_of_another_form(tmp_path, text):
    (tmp_path / 'arms.py').write_text(text)
    with pytest.raises(ConfigError, match=r'arms\.py'):
        read_definitions(str(tmp_path / 'arms.py'))


def test_a_change_that_finds_no_place_is_named(configs):
    with pytest.raises(
        ConfigError, match=r'arm sssd\+model\.student\.type\.x=1: model\.student\.type'
    ):
        configs_of(configs / 'stock.py', 'sssd+model.student.type.x=1')


def test_roots_are_left_as_they_are(configs):
    roots = roots_of(str(configs / 'stock.py'))
    before = copy.deepcopy(roots['distiller'].to_dict())
    arm_config(find_arm('lgd', BUILTIN), roots)
    assert roots['distiller'].to_dict() == before
