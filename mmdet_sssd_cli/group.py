"""The base class of commands; errors end them with one line and a telling exit code."""

import os
import sys
import traceback
import warnings
from typing import Any, NoReturn

import click

DONE, USER_ERROR, BUG, INTERRUPTED = 0, 1, 70, 130
"""Exit codes. Wrong usage ends with click's 2, what was preempted and saved with 75."""

DEBUG = 'MMDET_SSSD_DEBUG'
"""Environment variable that passes ``--debug`` on to started processes."""


def _set_debug(context: click.Context, _parameter: click.Parameter, debug: bool) -> None:
    if debug:
        context.find_root().command.debug = True
        os.environ[DEBUG] = '1'


class Command(click.Command):
    """A command with ``-h`` and ``--debug`` that hides other packages' warnings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {
            'help_option_names': ['-h', '--help'],
            'max_content_width': 100,
            **self.context_settings,
        }
        self.params.append(
            click.Option(
                ['--debug'],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_set_debug,
                help='Show warnings of other packages, and tracebacks.',
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        if not ctx.find_root().command.debug:
            os.environ.setdefault('PYTHONWARNINGS', 'ignore')
            warnings.simplefilter('ignore')
            warnings.filterwarnings('default', module='mmdet_sssd')
        return super().invoke(ctx)


class CommandLine(click.Group):
    """The group of commands, in the order of their definition.

    Attributes:
        debug: Whether this process, or the one that started it, got ``--debug``.
    """

    command_class = Command
    debug = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in that order."""
        return list(self.commands)

    def main(self, args: list[str] | None = None, **extra: Any) -> NoReturn:
        """Run a command and exit; errors print one line."""
        self.debug = bool(os.environ.get(DEBUG))
        extra.update(prog_name='mmdet-sssd', standalone_mode=False)
        try:
            code = super().main(args, **extra)
        except (Exception, KeyboardInterrupt) as error:
            code, message = ending(error)
            sys.stdout.flush()
            if self.debug or code == BUG:
                traceback.print_exception(error)
            click.echo(message, err=True)
        sys.exit(code if isinstance(code, int) else DONE)


def ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the last line for an error."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, 'interrupted'
    if isinstance(error, click.ClickException):
        context = getattr(error, 'ctx', None)  # of usage errors
        hint = f' See {context.command_path} --help' if context else ''
        return error.exit_code, f'error: {_one_line(error.format_message())}{hint}'
    if message := _user_error(error):
        return USER_ERROR, f'error: {_one_line(message)}'
    return BUG, f'bug: {type(error).__name__}: {_one_line(str(error))}'


def _user_error(error: BaseException) -> str | None:
    """Describe what the user can fix; None for a bug."""
    if 'mmdet_sssd.errors' in sys.modules:
        from mmdet_sssd.errors import user_error

        return user_error(error)
    if isinstance(error, ImportError) or (isinstance(error, OSError) and error.filename):
        return str(error)  # importing the package checks the environment first
    return None


def _one_line(text: str) -> str:
    return ' '.join(line.strip() for line in text.splitlines() if line.strip())
