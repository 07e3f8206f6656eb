import importlib.metadata

import pytest

from mmdet_sssd.environment import check_environment


@pytest.mark.parametrize(
    ('name', 'found', 'message'),
    [
        ('mmcv', '2.2.0', 'mmcv 2.2.0 is installed, >=2.0.0,<2.2 is needed'),
        ('mmdet', '2.28.2', 'mmdet 2.28.2 is installed, >=3.3,<3.4 is needed'),
        ('torch', None, 'torch is not installed (>=2.4 is needed)'),
        ('setuptools', '81.0.0', 'setuptools 81.0.0 is installed, <81 is needed'),
    ],
)
def test_unsupported_versions_are_named_with_a_command(monkeypatch, name, found, message):
    real = importlib.metadata.version

    def version(package):
        if package != name:
            return real(package)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr('mmdet_sssd.environment.version', version)
    with pytest.raises(ImportError) as error:
        check_environment()
    assert message in str(error.value)
    assert 'bash tools/setup.sh' in str(error.value)
