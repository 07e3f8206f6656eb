"""A disk without room for the second checkpoint, made in a mount namespace of its own."""

import os
import shutil
import subprocess
import sys

import pytest

from mmdet_sssd.runs import load_from_local

from ..commands.comparison.test_study import CONFIG, ROOT
from ..small_runner import draw_shapes, shapes_environment
from ..tools.run_comparison import assert_equal_states

NAMESPACE = ['unshare', '--user', '--map-root-user', '--mount']
SCRIPT = """
mount -t tmpfs -o size={room}k tmpfs run
{train}; echo "exit code $?"
ls run
mount -o remount,size=1g run
{train} --resume; echo "exit code $?"
cp run/epoch_2.pth resumed.pth
"""


def has_namespaces() -> bool:
    if not shutil.which('unshare'):
        return False
    mount = [*NAMESPACE, 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']
    return not subprocess.run(mount, capture_output=True, check=False).returncode


@pytest.mark.slow
@pytest.mark.skipif(not has_namespaces(), reason='this machine lets nobody mount')
def test_a_run_goes_on_when_there_is_room_again(tmp_path):
    (tmp_path / 'killed').touch()  # none is
    (tmp_path / 'config.py').write_text(CONFIG.format(root=ROOT, folder=tmp_path))
    environment = os.environ | shapes_environment(draw_shapes(tmp_path / 'shapes'), epochs=2)

    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    settings = [
        'default_hooks.checkpoint.save_best=None',
        'default_hooks.checkpoint.max_keep_ckpts=2',
    ]
    train = [sys.executable, '-m', 'mmdet_sssd', 'train', 'config.py', *settings, '--work-dir']
    run(*train, 'whole')
    size = (tmp_path / 'whole/epoch_1.pth').stat().st_size // 1024

    (tmp_path / 'run').mkdir()
    script = SCRIPT.format(room=size * 3 // 2, train=' '.join([*train, 'run', '2>&1']))
    output = run(*NAMESPACE, 'sh', '-c', script)
    full, resumed = output.split('exit code 1\n')
    last = full.splitlines()[-1]
    assert last.startswith('error: ')
    assert last.endswith(
        'run/epoch_2.pth: No space left on device; make room, then continue with --resume'
    )
    assert resumed.split()[1:4] == ['config.py', 'epoch_1.pth', 'last_checkpoint']
    assert resumed.endswith('exit code 0\n')
    assert 'resumed epoch: 1' in resumed
    ours, expected = (
        load_from_local(tmp_path / 'resumed.pth'),
        load_from_local(tmp_path / 'whole/epoch_2.pth'),
    )
    for key in ('state_dict', 'optimizer'):
        assert_equal_states(ours[key], expected[key], key)
