import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.settings import check_settings

DISTILLER = dict(model=dict(type='SSSDDistiller'))


@pytest.mark.parametrize('imports', ['mmdet_sssd', ['json', 'mmdet_sssd'], ['mmdet_sssd.models']])
@pytest.mark.parametrize('used', [DISTILLER, dict(model=dict(type='RetinaNet')), {}])
def test_what_imports_the_package_passes(imports, used):
    check_settings(Config({**used, 'custom_imports': dict(imports=imports)}), ())


@pytest.mark.parametrize(
    ('used', 'name'),
    [
        (DISTILLER, 'model.type=SSSDDistiller'),
        (dict(model=dict(type='mmdet.SSSDDistiller')), 'model.type=mmdet.SSSDDistiller'),
        (
            dict(default_hooks=dict(timer=None, x=dict(type='RandomStateHook'))),
            'the hook RandomStateHook',
        ),
        (dict(custom_hooks=[dict(type='CheckDatasetHook')]), 'the hook CheckDatasetHook'),
    ],
)
def test_a_lost_import_is_named_with_what_to_write(used, name):
    cfg = Config({**used, 'custom_imports': dict(imports=['mmpretrain.models'])})
    with pytest.raises(ConfigError) as error:
        check_settings(cfg, ())
    message = str(error.value)
    assert message.startswith(
        f"custom_imports.imports is ['mmpretrain.models'], without 'mmdet_sssd', which {name} needs"
    )
    assert "dict(imports=['mmpretrain.models', 'mmdet_sssd'], allow_failed" in message


def test_a_stock_config_needs_no_import():
    hooks = dict(logger=dict(type='LoggerHook'))
    check_settings(Config(dict(model=dict(type='RetinaNet'), default_hooks=hooks)), ())
