import importlib.metadata
import sys
import types

import pytest

from mmdet_sssd.environment import FAMILIES, check_environment

OPENMMLAB = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0', 'setuptools': '80.9.0'}
ONEDL = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'}


@pytest.fixture
def installed(monkeypatch):
    """The versions that are installed, by distribution."""
    versions = {'torch': '2.13.0'}

    def version(name):
        if name in versions:
            return versions[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr('mmdet_sssd.environment.version', version)
    return versions


@pytest.mark.parametrize('family', [OPENMMLAB, {**ONEDL, 'setuptools': '83.0.0'}])
def test_either_family_is_accepted(installed, family):
    installed.update(family)
    check_environment()


@pytest.mark.parametrize(
    ('family', 'changes', 'message'),
    [
        (OPENMMLAB, {'mmcv': '2.2.0'}, 'mmcv 2.2.0 is installed, >=2.0.0,<2.2 is needed'),
        (OPENMMLAB, {'setuptools': '81.0.0'}, 'setuptools 81.0.0 is installed, <81 is needed'),
        (ONEDL, {'torch': '2.1.0'}, 'torch 2.1.0 is installed, >=2.5 is needed'),
        ({}, {}, 'mmengine is not installed'),
    ],
)
def test_what_is_wrong_is_named_with_a_command(installed, family, changes, message):
    installed.update(family | changes)
    with pytest.raises(ImportError) as error:
        check_environment()
    assert message in str(error.value)
    option = ' --onedl' if family is ONEDL else ''
    assert f'`bash tools/setup.sh{option}`' in str(error.value)


@pytest.mark.parametrize('other', list(FAMILIES['OneDL']))
def test_a_mixture_of_the_families_is_refused(installed, other):
    installed.update({**OPENMMLAB, other: ONEDL[other]})
    with pytest.raises(ImportError) as error:
        check_environment()
    assert f'mmdet 3.3.0 of OpenMMLab; {other} {ONEDL[other]} of OneDL' in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_ops_of_another_mmcv_are_told(installed, monkeypatch):
    installed.update(OPENMMLAB)
    for name in [x for x in sys.modules if x.startswith('mmcv.ops')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', types.ModuleType('mmcv._ext'))
    with pytest.raises(ImportError, match='mmcv has no compiled ops that load'):
        check_environment()
