"""Finds configs: files, this package's by name, and mmdet's."""

import difflib
import importlib.util
import os
from functools import cache
from pathlib import Path

import click
from click.shell_completion import CompletionItem

CONFIG_FILES = ('.py', '.yml', '.yaml', '.json')  # that mmengine reads


class ConfigType(click.ParamType):
    """A config: a file, the name of one in this package, or ``mmdet::FOLDER/NAME.py``.

    Args:
        keep_scope: Whether to keep ``mmdet::…`` instead of turning it into a path.
    """

    name = 'config'

    def __init__(self, keep_scope: bool = False) -> None:
        self.keep_scope = keep_scope

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Find the config; see :func:`find_config`."""
        found = find_config(value)
        return value if self.keep_scope and '::' in value else found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete files and this package's configs."""
        names = [CompletionItem(x) for x in shipped_configs() if x.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type='file')]


def find_config(name: str) -> str:
    """Find a config's file.

    Args:
        name: A path, the name of a config of this package with or without ``.py``, or a config of
            another package, such as ``'mmdet::fcos/….py'``.

    Raises:
        ClickException: if it does not exist, or is a file of another kind; the message suggests similar
            names.
    """
    if os.path.isfile(name):
        if os.path.splitext(name)[1] not in (*CONFIG_FILES, ''):
            raise click.ClickException(
                f'CONFIG is {name}; accepted: a config ({", ".join(CONFIG_FILES)}), which comes first'
            )
        return name
    package, _, path = name.rpartition('::')
    if package:
        found = configs_of(package) / path
    else:
        found = shipped_configs().get(name.removesuffix('.py'), Path())
    if found.is_file():
        return str(found)
    raise click.ClickException(f'found no config {name}; {_suggestion(name)}')


@cache
def shipped_configs() -> dict[str, Path]:
    """List this package's configs by name."""
    paths = sorted(configs_of('mmdet_sssd').rglob('*.py'))
    return {path.stem: path for path in paths if '_base_' not in path.parts}


@cache
def configs_of(package: str) -> Path:
    """Find a package's folder of configs, installed or in a checkout, without importing it.

    Without the package, this is a folder that does not exist.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return Path(package, 'configs')
    root = Path(spec.submodule_search_locations[0]).resolve()
    installed = root / '.mim/configs'
    return installed.resolve() if installed.is_dir() else root.parent / 'configs'


def _suggestion(name: str) -> str:
    """Suggest configs with similar names; without any, say what is accepted."""
    stem = Path(name.rpartition('::')[2]).stem
    stock = configs_of('mmdet').glob('[!_]*/*.py')
    known = {
        **{path.stem: f'mmdet::{path.parent.name}/{path.name}' for path in stock},
        **{stem: stem for stem in shipped_configs()},
        **{path.stem: str(path) for path in Path(name).parent.glob('*.py')},
    }
    matches = [known[x] for x in difflib.get_close_matches(stem, known, n=2, cutoff=0.75)]
    if matches:
        return f'did you mean {" or ".join(matches)}?'
    return 'accepted: a file, the name of a config in mmdet_sssd, or mmdet::FOLDER/NAME.py'
