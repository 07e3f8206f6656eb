"""What every command does: help at once, one line for what is wrong, exit codes that mean something."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

import mmdet_sssd
from mmdet_sssd.environment import build_mmcv, installed_families
from mmdet_sssd_cli.commands import command_line
from mmdet_sssd_cli.config_names import find_config
from mmdet_sssd_cli.group import ending

from ..command import run_command

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(command_line.commands)
SHIPPED = 'sssd_retinanet_r50_fpn_2x_coco'


def run_apart(*args):
    """Run Python in a process of its own."""
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_s_help_has_an_example_that_it_accepts(name):
    found = CliRunner().invoke(command_line, [name, '-h'])
    assert (found.exit_code, found.stderr) == (0, '')
    assert '--debug' in found.stdout
    assert '--gpus' not in found.stdout  # mim would add that flag to every run
    command = command_line.commands[name]
    examples = re.findall(rf'^ *mmdet-sssd {name}(.*)', command.help.replace('\\\n', ''), re.M)
    assert examples
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r'--[\w-]+', ' '.join(examples))) <= known


def test_help_imports_nothing_that_is_slow():
    found = run_apart('-X', 'importtime', '-m', 'mmdet_sssd', 'compare', '--help')
    assert found.returncode == 0
    assert 'Usage: mmdet-sssd compare' in found.stdout
    imported = set(re.findall(r'\| +(\w+)$', found.stderr, re.M))
    assert 'click' in imported
    assert not {'torch', 'mmengine', 'rich'} & imported


@pytest.mark.parametrize(
    ('args', 'code', 'named'),
    [
        (['trian', 'a.py'], 2, "'train'"),
        (['train', SHIPPED, '--work-dirr', 'a'], 2, "'--work-dir'"),
        (['train'], 2, 'CONFIG'),
        (['test', str(ROOT / 'README.md'), 'a.pth'], 1, '.py, .yml, .yaml, .json'),
        (['train', SHIPPED, '--launcher', 'pytorch'], 1, 'torchrun'),
        (['train', SHIPPED, '--launcher', 'slurm'], 1, 'srun'),
        (['train', SHIPPED, 'epoch_1.pth'], 2, "'epoch_1.pth'"),
        (['train', 'sssd_retinanet_r50_fpn_2xcoco'], 1, SHIPPED),
        (['wrap', 'mmdet::ssd/sd300_coco.py', '--out', 'a.py'], 1, 'mmdet::ssd/ssd300_coco.py'),
        (['dry-run', 'configs/nothing.py'], 1, 'configs/nothing.py'),
    ],
)
def test_what_is_mistyped_is_said_in_a_line_with_what_was_meant(args, code, named):
    found, stderr = run_command(*args)
    (line,) = stderr.splitlines()
    assert (found, line.split(' ')[0]) == (code, 'error:')
    assert named in line


def test_configs_are_found_by_name_path_and_scope(tmp_path, monkeypatch):
    path = str(ROOT / f'configs/sssd/{SHIPPED}.py')
    assert [find_config(x) for x in (SHIPPED, f'{SHIPPED}.py', path)] == [path] * 3
    assert Path(find_config('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')).is_file()
    (tmp_path / f'{SHIPPED}.py').write_text('')
    monkeypatch.chdir(tmp_path)
    assert find_config(f'{SHIPPED}.py') == f'{SHIPPED}.py'  # what lies here comes first


def test_names_of_commands_and_configs_are_completed(monkeypatch):
    def complete(words):
        monkeypatch.setenv('_MMDET_SSSD_COMPLETE', 'bash_complete')
        monkeypatch.setenv('COMP_WORDS', words)
        monkeypatch.setenv('COMP_CWORD', str(len(words.split()) - 1))
        return CliRunner().invoke(command_line, []).stdout.split()

    assert complete('mmdet-sssd conv') == ['plain,convert-lgd']
    assert f'plain,{SHIPPED}' in complete('mmdet-sssd train sssd_retinanet_r50_fpn_2')


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (KeyboardInterrupt(), 130, 'interrupted'),
        (click.UsageError('no\nline'), 2, 'error: no line'),
        (mmdet_sssd.ConfigError('is 2; accepted: 1', 'a.b'), 1, 'error: a.b is 2; accepted: 1'),
        (PermissionError(13, 'Permission denied', '/x'), 1, 'error: /x: Permission denied'),
        (OSError(28, 'No space left', '/x'), 1, 'error: /x: No space left; make'),
        (SyntaxError('invalid', ('my.py', 3, 1, 'a b')), 1, 'error: my.py, line 3: invalid'),
        (
            RuntimeError('Expected one of cpu, cuda, … device type: gpu'),
            1,
            'error: Expected one of',
        ),
        (torch.OutOfMemoryError('CUDA'), 1, 'error: out of GPU memory; accepted: a smaller '),
        (ZeroDivisionError('by 0'), 70, 'bug: ZeroDivisionError: by 0'),
    ],
)
def test_ends(error, code, line):
    found, message = ending(error)
    assert found == code
    assert message.startswith(line)


def test_a_bug_shows_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr('mmdet_sssd.commands.shapes.draw_data_set', lambda *_, **__: 1 / 0)
    code, stderr = run_command('shapes', tmp_path / 'a')
    assert code == 70
    assert 'Traceback' in stderr
    assert stderr.splitlines()[-1].startswith('bug: ZeroDivisionError')


def test_setup_check_says_what_there_is(capsys):
    assert run_command('setup-check') == (0, '')
    out = capsys.readouterr().out
    families = [name for names in installed_families().values() for name in names]
    for name in (f'torch {torch.__version__}', *families):
        assert name in ' '.join(out.split())
    assert re.search('^cpu .*mmcv ops run$', out, re.M)
    assert out.splitlines()[-1] == 'ready'


@pytest.mark.parametrize('command', [['setup-check'], ['train', SHIPPED]], ids=' '.join)
def test_an_mmcv_without_compiled_ops_is_told_in_a_line(command):
    """As a wheel of mmcv that was built without torch."""
    hidden = 'import sys; sys.modules["mmcv._ext"] = None'
    found = run_apart('-c', f'{hidden}; from mmdet_sssd_cli import main; main()', *command)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith('error: mmcv has no compiled ops')
    assert 'bash tools/setup.sh' in line
    assert build_mmcv(*installed_families()) in line
    assert ('Python ' in found.stdout) == (command == ['setup-check'])  # which works everywhere


@pytest.mark.parametrize('path', sorted((ROOT / 'tools').glob('*.py')), ids=lambda path: path.stem)
def test_the_tools_of_mim_are_commands(path):
    (name,) = re.findall(r"main\('([\w-]+)'\)", path.read_text())
    assert name in COMMANDS
