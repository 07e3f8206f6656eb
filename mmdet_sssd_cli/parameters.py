"""Arguments and options that several commands share."""

import re
from collections.abc import Callable
from typing import Any

import click

from .config_names import ConfigType

KEY_VALUE = re.compile(r'[A-Za-z_][\w.]*=')


class KeyValueType(click.ParamType):
    """A change to a config, ``KEY=VALUE``."""

    name = 'KEY=VALUE'

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the form."""
        if not KEY_VALUE.match(value):
            self.fail(f'{value!r}; accepted: KEY=VALUE, such as model.distill_coef=3.', param, ctx)
        return value


class ListType(click.ParamType):
    """Texts separated by commas."""

    name = 'list'

    def convert(
        self, value: str | list[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Split at the commas."""
        return (
            [x.strip() for x in value.split(',') if x.strip()] if isinstance(value, str) else value
        )


def config_argument(required: bool = True, keep_scope: bool = False) -> Callable:
    """Take a config by its path or name; see :class:`~.config_names.ConfigType`."""
    return click.argument('config', type=ConfigType(keep_scope), required=required)


def overrides_argument(function: Callable) -> Callable:
    """Take changes to the config, with or without ``--cfg-options`` before them."""
    return cfg_options_flag(
        click.argument('overrides', nargs=-1, type=KeyValueType(), metavar='[KEY=VALUE]...')(
            function
        )
    )


def cfg_options_flag(function: Callable) -> Callable:
    """Accept ``--cfg-options``, which OpenMMLab's tools require before ``KEY=VALUE …``."""
    return click.option(
        '--cfg-options',
        is_flag=True,
        expose_value=False,
        help='Optional before KEY=VALUE, for compatibility with OpenMMLab.',
    )(function)


def parsed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Parse changes to a config as OpenMMLab's tools do."""
    from mmengine.config import DictAction

    pairs = (text.partition('=') for text in overrides)
    return {key: DictAction._parse_iterable(value) for key, _, value in pairs}
