"""The wheel, made from the source distribution, in its own environment, outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

import mmdet_sssd

from ..small_runner import WITHOUT_WORKERS, draw_shapes, shapes_environment

ROOT = Path(__file__).parents[2]
CONFIG = 'sssd_retinanet_r18-small_own-data.py'
pytestmark = pytest.mark.slow


def run(*command, **kwargs) -> str:
    result = subprocess.run(
        [str(x) for x in command], capture_output=True, text=True, check=False, **kwargs
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('distribution')
    source = folder / 'source'
    ignored = shutil.ignore_patterns('.*cache', '.git', '.venv', 'work_dirs', 'build', '*.egg-info')
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    build = 'import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])'
    run(sys.executable, '-c', build, folder, cwd=source)
    (archive,) = folder.glob('*.tar.gz')
    pip = (sys.executable, '-m', 'pip')
    run(*pip, 'wheel', '--no-build-isolation', '--no-deps', '--no-index', '-w', folder, archive)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel; what it needs comes from this one."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, symlinks=True, with_pip=False)
    paths = dict(base=str(folder), platbase=str(folder))
    site = Path(sysconfig.get_path('purelib', 'venv', paths))
    (site / 'shared.pth').write_text(sysconfig.get_path('purelib'))
    python = folder / 'bin/python'
    pip = (sys.executable, '-m', 'pip', '--python', python)
    run(*pip, 'install', '--no-deps', '--no-index', '--ignore-installed', wheel)
    return folder


def test_what_is_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f'mmdet_sssd-{mmdet_sssd.__version__}.dist-info'
    assert {name.split('/')[0] for name in names} == {'mmdet_sssd', 'mmdet_sssd_cli', info}
    shipped = {x.removeprefix('mmdet_sssd/.mim/') for x in names if '/.mim/configs/' in x}
    sources = {str(x.relative_to(ROOT)) for x in (ROOT / 'configs').rglob('*.*') if x.is_file()}
    assert shipped == {x for x in sources if '__pycache__' not in x}
    metadata = PathDistribution(zipfile.Path(wheel, f'{info}/')).metadata
    assert metadata['License-Expression'] == 'Apache-2.0'
    tested = (ROOT / 'requirements.txt').read_text()
    for requirement in metadata.get_all('Requires-Dist'):
        assert re.search(rf'^{re.escape(requirement)}$', tested, re.M)


def test_it_trains_outside_the_checkout(environment, tmp_path):
    data = shapes_environment(draw_shapes(tmp_path / 'data'), epochs=1)
    path = f'{environment / "bin"}:{os.environ["PATH"]}'
    where = dict(cwd=tmp_path, env={**os.environ, **data, 'PYTHONPATH': '', 'PATH': path})
    python = environment / 'bin/python'
    used = run(python, '-c', 'import mmdet_sssd as m; print(m.__file__)', **where)
    assert Path(used.strip()).is_relative_to(environment)
    options = ['default_hooks.logger.interval=1', *WITHOUT_WORKERS]
    run(environment / 'bin/mmdet-sssd', 'train', CONFIG, '--work-dir', 'run', *options, **where)
    assert (tmp_path / 'run/epoch_1.pth').is_file()
    printed = run(
        *(python, '-m', 'mim', 'train', 'mmdet_sssd', CONFIG, '--work-dir', 'by_mim'),
        *('--cfg-options', *options),
        **where,
    )
    assert 'Epoch(train) [1][2/2]' in printed
