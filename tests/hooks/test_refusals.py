"""What hooks refuse before the first iteration, with the setting that the error names."""

import math

import pytest
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import RuntimeInfoHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch.optim import SGD

from mmdet_sssd import ConfigError
from mmdet_sssd.models import FeatureTerm

from ..distillers import TOY
from ..toy_detector import TOY_MODEL, toy_runner

COEF, PHASES = 'AdaptiveDistillCoefHook', 'DistillPhasesHook'
FRACTIONS = ('detach_student', 'detach_last', 'freeze_backbone', 'teacher_until')


@pytest.mark.parametrize(
    ('hook', 'name', 'value'),
    [
        (COEF, 'policy', 'cosine'),
        (COEF, 'factor', 0),
        (COEF, 'ratio', 0),
        (COEF, 'ratio', math.nan),
        (COEF, 'ratio', '1'),
        *((PHASES, name, value) for name in FRACTIONS for value in (-0.1, 1.1)),
        (PHASES, 'teacher_must_lead', True),  # without detach_student
        (PHASES, 'teacher_must_lead', 'no'),
    ],
)
def test_values(hook, name, value):
    with pytest.raises(ConfigError, match=rf'^{hook}\.{name} is '):
        HOOKS.build({'type': hook, name: value})


def test_a_distiller_in_test_time_augmentation_is_found(tmp_path):
    hook = dict(type=COEF)
    runner = toy_runner(tmp_path, hooks=[hook], model=TOY_MODEL)
    runner.model = MODELS.build(dict(type='DetTTAModel', module=runner.model))
    runner.call_hook('before_run')  # as in a test


@pytest.mark.parametrize(
    ('key', 'hooks', 'model'),
    [
        (rf'{COEF}\.term', [dict(type=COEF, term='x')], {}),
        (rf'{COEF}\.term', [dict(type=COEF, term=None)], {}),
        (rf'{COEF}\.ratio', [dict(type=COEF, ratio=0.3)], dict(distill_coef=0.0)),
        (f'there are two {COEF}', [dict(type=COEF)] * 2, {}),
        (rf'{PHASES}\.teacher', [dict(type=PHASES, teacher='x')], {}),
        (
            rf'{PHASES}\.teacher_must_lead',
            [dict(type=PHASES, teacher_must_lead=True, detach_student=0.1)],
            dict(teacher_loss_weight=0.0),
        ),
        (f'there are two {PHASES}', [dict(type=PHASES)] * 2, {}),
        ('ExportStudentHook needs', [dict(type='ExportStudentHook')], None),
    ],
)
def test_models_that_do_not_fit(tmp_path, key, hooks, model):
    model = TOY if model is None else TOY_MODEL | model
    runner = toy_runner(tmp_path, hooks=hooks, model=model)
    with pytest.raises(ConfigError, match=f'^{key}'):
        runner.train()
    assert runner.iter == 0


def test_a_teacher_that_must_lead_needs_the_log_of_losses(tmp_path):
    hooks = [dict(type=PHASES, teacher_must_lead=True, detach_student=0.1)]
    runner = toy_runner(tmp_path, hooks=hooks, model=TOY_MODEL)
    runner._hooks = [x for x in runner.hooks if not isinstance(x, RuntimeInfoHook)]
    with pytest.raises(ConfigError, match=rf'^{PHASES}\.teacher_must_lead is True'):
        runner.train()
    assert runner.iter == 0


def test_a_ratio_for_a_term_on_heads(tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureTerm, 'needs_head', True)
    runner = toy_runner(tmp_path, hooks=[dict(type=COEF, ratio=0.3)])
    with pytest.raises(ConfigError, match=rf'^{COEF}\.ratio is 0.3, but term'):
        runner.train()


def test_several_optimizers(tmp_path):
    """Their rates fall apart; it is said before training, and not by the optimizers' wrapper."""
    runner = toy_runner(tmp_path, hooks=[dict(type=COEF)])
    parts = {'student': runner.model.student, 'teachers': runner.model.teachers}
    runner.optim_wrapper = OptimWrapperDict(
        **{name: OptimWrapper(SGD(part.parameters(), lr=0.1)) for name, part in parts.items()}
    )
    with pytest.raises(ConfigError, match=r'^optim_wrapper makes several optimizers'):
        runner.train()
    assert runner.iter == 0
