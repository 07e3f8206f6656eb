"""What setup.sh does where there is a GPU, with stand-ins for nvidia-smi, torch and pip."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from ..command import write_program

SETUP = Path(__file__).parents[2] / 'tools/setup.sh'
TORCH = """
__version__ = '2.13.0'
class version: cuda = {cuda!r}
class cuda: is_available = staticmethod(lambda: {available})
"""
PIP = """#!/bin/sh
echo "$FORCE_CUDA|$TORCH_CUDA_ARCH_LIST|$CUDA_HOME|$*" >>"$VIRTUAL_ENV/pip.log"
case "$*" in
    *--only-binary*) exit 1 ;;
    wheel*) mkdir "$VIRTUAL_ENV/wheels" && touch "$VIRTUAL_ENV/wheels/mmcv-2.1.0.whl" ;;
esac
"""
SMI = """#!/bin/sh
case "$*" in
    *compute_cap*) printf '%s\\n' {caps} ;;
    *driver_version*) echo 470.42 ;;
    -L) echo 'GPU 0: a GPU' ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Run setup.sh in an environment with a torch and GPUs; gives its last line."""
    folder = tmp_path / 'env'
    venv.create(folder, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path('purelib', 'venv', dict(base=folder, platbase=folder)))

    def run(*args, cv2='', cuda='13.0', available=True, caps='9.0', **variables):
        (site / 'cv2.py').write_text(cv2)
        (site / 'torch.py').write_text(TORCH.format(cuda=cuda, available=available))
        write_program(folder / 'bin/pip', PIP)
        write_program(folder / 'bin/nvidia-smi', SMI.format(caps=caps))
        kept = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'CUDA_HOME')}
        paths = dict(VIRTUAL_ENV=str(folder), PATH=f'{folder}/bin:{os.environ["PATH"]}')
        ended = subprocess.run(
            ['bash', str(SETUP), '--active', *args],
            env={**kept, **paths, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode
        return ended.stderr.splitlines()[-1]

    run.folder, run.site = folder, site
    return run


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(cuda=None), 'there is a GPU, but torch 2.13.0 is built without CUDA; uninstall it'),
        (
            dict(available=False),
            'its CUDA 13.0 needs a newer driver than 470.42; update the driver',
        ),
        (
            dict(caps="'[N/A]'"),
            "nvidia-smi does not show the GPU's compute capability; set FORCE_CUDA",
        ),
        (dict(caps='', FORCE_CUDA='1'), 'FORCE_CUDA=1 needs TORCH_CUDA_ARCH_LIST'),
        (
            dict(cuda='12.8'),
            'pip has no complete compiler of CUDA 12.8 (only of CUDA 13); install that',
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_with_what_to_do(run, settings, message):
    assert message in run(**settings)


def test_an_opencv_without_its_libraries_is_told_before_mmcv_is_built(run):
    missing = 'raise ImportError("libGL.so.1: cannot open shared object file")'
    assert 'OpenCV does not load; on Debian: apt install libgl1' in run(cv2=missing)
    assert 'mmcv' not in (run.folder / 'pip.log').read_text()


def test_an_unknown_argument_is_refused(run):
    assert 'unknown argument --gpu; accepted: --active, --cpu, --onedl, or nothing' in run('--gpu')


@pytest.mark.parametrize(('there', 'options'), [('mmcv', ['--onedl']), ('onedl_mmcv', [])])
def test_packages_of_the_other_family_are_told_with_what_to_do(run, there, options):
    info = run.site / f'{there}-2.1.0.dist-info'
    info.mkdir()
    name = there.replace('_', '-')
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 2.1.0\n')
    assert f'`pip uninstall -y {name}` removes both' in run(*options)


@pytest.mark.slow
def test_mmcv_is_compiled_for_the_gpus_by_the_compiler_of_torch_s_cuda(run):
    home = run.site / 'nvidia/cu13'
    for name in ('bin/nvcc', 'include/cusparse.h', 'lib/libcudart.so.13'):
        (home / name).parent.mkdir(parents=True)
        write_program(home / name, '')
    assert 'mmcv was built, but its ops do not load' in run(caps='9.0 8.0 9.0')
    assert (home / 'lib/libcudart.so').is_file()
    calls = (run.folder / 'pip.log').read_text().splitlines()
    assert any('|install -q cuda-toolkit[nvcc,cccl]==13.0.*' in x for x in calls)
    (build,) = [x for x in calls if '|wheel ' in x]
    assert build.startswith(f'1|8.0;9.0|{home}|wheel ')
    assert '--no-cache-dir' in build


@pytest.mark.slow
def test_without_the_gpu_nothing_of_cuda_is_installed(run):
    assert 'mmcv was built, but its ops do not load' in run('--cpu', cuda=None, FORCE_CUDA='1')
    calls = (run.folder / 'pip.log').read_text().splitlines()
    assert not any('cuda-toolkit' in x for x in calls)
    builds = [x for x in calls if '|wheel ' in x]
    assert builds
    assert all(x.startswith('|||wheel ') for x in builds)
