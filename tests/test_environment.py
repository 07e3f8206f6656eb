import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmdet_sssd
from mmdet_sssd.environment import REBUILD_MMCV, check_environment


@pytest.mark.parametrize(
    ('name', 'found', 'message'),
    [
        ('mmcv', '2.2.0', 'mmcv 2.2.0 is installed, >=2.0.0,<2.2 is needed'),
        ('mmdet', '2.28.2', 'mmdet 2.28.2 is installed, >=3.3,<3.4 is needed'),
        ('torch', None, 'torch is not installed (>=2.1 is needed)'),
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


def test_mmcv_without_ops_says_how_to_build_them(tmp_path):
    """A wheel without ops imports, but for mmcv.ops."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('')
    (tmp_path / 'mmcv' / 'ops.py').write_text('raise ImportError("No module named mmcv._ext")')
    result = subprocess.run(
        [sys.executable, '-c', 'import mmdet_sssd'],
        env={
            **os.environ,
            'PYTHONPATH': f'{tmp_path}{os.pathsep}{Path(mmdet_sssd.__file__).parents[1]}',
        },
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert 'has no compiled ops that load with torch' in last
    assert 'bash tools/setup.sh' in last
    assert REBUILD_MMCV in last
