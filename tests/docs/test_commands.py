"""Every command on the documentation's pages is one that works: it exists, and so do its options,
the configs, arms and files that it names, and the config's keys that it changes."""

import importlib.util
import json
import os
import re
import runpy
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import click
import mim.cli
import mmdet
import pytest
from mmengine.config import Config
from torch.distributed.run import get_args_parser

from mmdet_sssd.checks.settings import check_overrides
from mmdet_sssd.commands.comparison.arms import find_arm, read_definitions
from mmdet_sssd_cli.commands import command_line
from mmdet_sssd_cli.config_names import find_config
from mmdet_sssd_cli.parameters import parsed

from .blocks import PAGES, ROOT, Call, blocks_of, calls_of, prose_of

STOCK_TOOLS = Path(mmdet.__file__).parent / '.mim/tools'
OWN_CONFIGS = ('my_config.py', 'teacher.py', 'CONFIG')  # that pages take for granted
UNCHECKED = {
    'docker': 'it would need its daemon',
    'git': 'it would need a network',
    'pip': 'it would change the environment',
    'ruff': 'tools/test.sh runs it',
    'scontrol': 'it would need a cluster, as the options of srun would',
}
WORKERS = {  # what a command hands its arguments to; each is run for real by tests of its own
    'benchmark': 'commands.benchmark.benchmark.run_benchmark',
    'compare': 'commands.comparison.study.Study',
    'convert-lgd': 'checkpoints.convert_lgd',
    'dry-run': 'commands.training.run_training',
    'export': 'checkpoints.export_student',
    'quickstart': 'commands.quickstart.run_quickstart',
    'shapes': 'commands.shapes.draw_data_set',
    'test': 'commands.training.run_test',
    'train': 'commands.training.run_training',
    'visualize': 'commands.visualization.draw_images',
    'wrap': 'commands.wrapping.write_wrapped_config',
}


class Parsed(Exception):
    """Ends a program whose arguments were accepted."""


def check_ours(call: Call) -> None:
    """Run a command of this package up to its work, and look up what only that would.

    The stand-in for the work accepts what the work accepts.
    """
    root = command_line.make_context('mmdet-sssd', list(call.args))
    name, command, args = command_line.resolve_command(root, [*root._protected_args, *root.args])
    if not args and call.where in PAGES:
        return  # named in the text, not called
    try:
        context = command.make_context(name, args, parent=root)
    except click.exceptions.Exit:  # after --help
        return
    given = context.params
    if given.get('overrides'):
        check_overrides(Config.fromfile(find_config(given['config'])), parsed(given['overrides']))
    arms = [*(given.get('arms') or ()), *(given.get('against') or ())]
    definitions = read_definitions(given.get('arms_file')) if arms else {}
    for arm in arms:
        find_arm(arm, definitions)
    if name == 'wrap':
        given['force'] = True  # pages take my_config.py for granted, and this one writes it
    with (
        mock.patch(f'mmdet_sssd.{WORKERS[name]}', autospec=True) as work,
        warnings.catch_warnings(),
    ):
        command.invoke(context)
        work.assert_called_once()


def check_mim(call: Call) -> None:
    """Parse a command of mim's, and what it hands on."""
    name, *args = call.args
    command = mim.cli.cli.get_command(None, name)
    if not args and call.where in PAGES:
        return
    given = command.make_context(name, args).params
    if name not in ('train', 'test', 'run'):
        return
    handed = [given.get('config'), given.get('checkpoint'), *given['other_args']]
    handed = [text for text in handed if text]
    if given['package'] == 'mmdet_sssd':
        check_ours(Call(call.where, call.env, 'mmdet-sssd', [name, *handed]))
    else:
        (tool,) = STOCK_TOOLS.rglob(f'{given.get("command", name)}.py')
        check_arguments(partial(runpy.run_path, str(tool)), handed)


def check_python(call: Call) -> None:
    """Parse ``python -m tests.…``."""
    flag, module, *args = call.args
    assert flag == '-m'
    if not module.startswith('tests.'):
        assert importlib.util.find_spec(module)
    elif args or call.where not in PAGES:
        check_arguments(partial(runpy.run_module, module), args)
    else:
        assert (ROOT / f'{module.replace(".", "/")}.py').is_file()


def check_arguments(run: Callable, args: list[str]) -> None:
    """Run a program until its arguments are parsed."""
    real = ArgumentParser.parse_args

    def parse_args(self, *_, **__):
        real(self, args)
        raise Parsed

    with mock.patch.object(ArgumentParser, 'parse_args', parse_args), pytest.raises(Parsed):
        run(run_name='__main__')


def check_torchrun(call: Call) -> None:
    """Parse torchrun's options, and the command of this package that it starts."""
    given = get_args_parser().parse_args(call.args)
    assert (given.module, given.training_script) == (True, 'mmdet_sssd')
    check_ours(Call(call.where, call.env, 'mmdet-sssd', given.training_script_args))


def check_srun(call: Call) -> None:
    """Parse the command that it starts."""
    args = call.args[call.args.index('mmdet-sssd') + 1 :]
    check_ours(Call(call.where, call.env, 'mmdet-sssd', args))


def check_script(call: Call) -> None:
    """Look for a script, and for its options in it."""
    script, *args = call.args
    text = (ROOT / script).read_text()
    assert all(arg in text for arg in args if arg.startswith('-')), args


CHECKS = {
    'mmdet-sssd': check_ours,
    'mim': check_mim,
    'python': check_python,
    'torchrun': check_torchrun,
    'srun': check_srun,
    'bash': check_script,
}


@pytest.fixture(scope='module')
def workplace(tmp_path_factory) -> Path:
    """A folder as a user has it: the checkout's files, configs of one's own, and data."""
    folder = tmp_path_factory.mktemp('workplace')
    for name in ('configs', 'docker', 'docs', 'tests', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    readme = next(x.text for x in blocks_of('README.md') if x.language == 'python')
    for name in OWN_CONFIGS:
        (folder / name).write_text(readme)
    content = {'images': [{'id': 1}], 'annotations': [], 'categories': [{'id': 1, 'name': 'cell'}]}
    for data in ('own', 'bccd', 'cells', 'shapes'):
        annotations = folder / 'data' / data / 'annotations'
        annotations.mkdir(parents=True)
        for split in ('train', 'train_quarter', 'val', 'test', 'unlabelled'):
            (annotations / f'{split}.json').write_text(json.dumps(content))
    return folder


def problems(call: Call) -> Iterator[str]:
    """Say what is wrong with a command."""
    for word in call.args:
        if re.match(r'(configs|docker|docs|tests|tools)/', word) and not Path(word).exists():
            yield f'{word} is not there'
    try:
        CHECKS.get(call.program, lambda _: None)(call)
    except (Exception, SystemExit, pytest.fail.Exception) as error:
        yield f'{type(error).__name__}: {error}'


@pytest.mark.parametrize('page', PAGES)
def test_every_command_works(page, workplace, tmp_path, monkeypatch):
    calls = calls_of(page, tmp_path, [*CHECKS, *UNCHECKED])
    monkeypatch.chdir(workplace)
    found = []
    for call in calls:
        with mock.patch.dict(os.environ, call.env):
            found += [f'{call}\n    {problem}' for problem in problems(call)]
    assert not found, '\n'.join(found)


def test_the_text_s_options_and_variables_exist():
    options = set(get_args_parser()._option_string_actions)
    mims = [mim.cli.cli.get_command(None, name) for name in ('train', 'test')]
    for command in (*command_line.commands.values(), *mims):
        options |= {option for x in command.params for option in (*x.opts, *x.secondary_opts)}
    scripts = ''.join(path.read_text() for path in ROOT.glob('tools/*.sh'))
    code = ''.join(
        path.read_text() for x in ('configs', 'mmdet_sssd') for path in (ROOT / x).rglob('*.py')
    )
    for page in PAGES:
        known = scripts + ''.join(block.text for block in blocks_of(page))
        for option in re.findall(r'`(--[\w-]+)', prose_of(page)):
            assert option in options or option in known, f'{page}: {option}'
        for name in re.findall(r'SSSD_\w+', prose_of(page)):
            assert name in code, f'{page}: {name}'
