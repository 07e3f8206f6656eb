"""Arguments and options that several commands share."""

import re
from collections.abc import Callable
from typing import Any

import click

from .config_names import ConfigType

KEY_VALUE = re.compile(r'[A-Za-z_][\w.]*=')
COMMA = re.compile(r',(?![^\[(]*[\])])')  # not inside brackets


class ListType(click.ParamType):
    """Texts separated by commas."""

    name = 'list'

    def convert(
        self, value: str | list[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Split at the commas outside brackets."""
        if not isinstance(value, str):
            return value
        return [x.strip() for x in COMMA.split(value) if x.strip()]


def config_argument(required: bool = True, keep_scope: bool = False) -> Callable:
    """Take a config by its path or name; see :class:`~.config_names.ConfigType`."""
    return click.argument('config', type=ConfigType(keep_scope), required=required)


def _checked(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    for text in texts:
        if not KEY_VALUE.match(text):
            message = f'{text!r}; accepted: KEY=VALUE, such as model.distill_coef=3.'
            raise click.BadParameter(message, context, parameter)
    return texts


def overrides_argument(function: Callable) -> Callable:
    """Take changes to the config, with or without ``--cfg-options`` before them."""
    argument = click.argument('overrides', nargs=-1, metavar='[KEY=VALUE]...', callback=_checked)
    return cfg_options_flag(argument(function))


cfg_options_flag = click.option(
    '--cfg-options',
    is_flag=True,
    expose_value=False,
    help='Optional before KEY=VALUE, for compatibility with OpenMMLab.',
)
amp_option = click.option('--amp', is_flag=True, help='Automatic mixed precision.')
arms_file_option = click.option(
    '--arms-file', help='File with your own arms: arms = dict(name=dict(base=…, …)).'
)


def parsed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Parse changes to a config as OpenMMLab's tools do."""
    from mmengine.config import DictAction

    pairs = (text.partition('=') for text in overrides)
    return {key: DictAction._parse_iterable(value) for key, _, value in pairs}
