"""How commands end: in one line, and with an exit code that says what kind of end it is."""

import os
import sys
import tempfile
import traceback
import warnings
from typing import Any, NoReturn

import click

DONE, USER_ERROR, USAGE, BUG, INTERRUPTED = 0, 1, 2, 70, 130
"""Exit codes; 75 (what was begun is saved, go on) is given by what saves it."""

DEBUG = 'MMDET_SSSD_DEBUG'
"""In the environment, for processes that are started."""


def _set_debug(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
    if given:
        context.find_root().command.debug = True
        os.environ[DEBUG] = '1'


class Command(click.Command):
    """A command with ``-h`` and ``--debug`` that keeps other packages' warnings to itself."""

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
        """Run it."""
        if not ctx.find_root().command.debug:
            os.environ.setdefault('PYTHONWARNINGS', 'ignore')
            warnings.simplefilter('ignore')
            warnings.filterwarnings('default', module='mmdet_sssd')
        return super().invoke(ctx)


class CommandLine(Command, click.Group):
    """The commands, in the order in which they are defined.

    Attributes:
        debug: Whether ``--debug`` was given, to this process or to the one that started it.
    """

    command_class = Command
    debug = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name them in that order."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Hand over to the command."""
        return click.Group.invoke(self, ctx)

    def main(
        self,
        args: list[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command and end the process; errors end it with one line."""
        self.debug = bool(os.environ.get(DEBUG))
        try:
            code = super().main(args, 'mmdet-sssd', complete_var, standalone_mode=False, **extra)
        except (Exception, KeyboardInterrupt) as error:
            code, message = ending(error)
            sys.stdout.flush()
            if self.debug:
                traceback.print_exception(error)
            elif code == BUG:
                message += f' (traceback: {_keep_traceback(error)})'
            click.echo(message, err=True)
        sys.exit(code if isinstance(code, int) else DONE)


def ending(error: BaseException) -> tuple[int, str]:
    """Give the exit code and the line that a process ends with."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, 'interrupted'
    if isinstance(error, click.ClickException):
        return error.exit_code, f'error: {_one_line(error.format_message())}{_help_hint(error)}'
    if message := _user_error(error):
        return USER_ERROR, f'error: {_one_line(message)}'
    return BUG, f'bug: {type(error).__name__}: {_one_line(str(error))}'


def _user_error(error: BaseException) -> str | None:
    """Say what the user has to mend, if that is what the error is about."""
    if 'mmdet_sssd.errors' in sys.modules:
        from mmdet_sssd.errors import user_error

        return user_error(error)
    if isinstance(error, ImportError) or (isinstance(error, OSError) and error.filename):
        return str(error)  # of the environment, which the package checks before all else
    return None


def _one_line(text: str) -> str:
    return ' '.join(line.strip() for line in text.splitlines() if line.strip())


def _help_hint(error: click.ClickException) -> str:
    """Say where the right usage stands, if usage is what is wrong."""
    context = getattr(error, 'ctx', None)
    return f' See {context.command_path} --help' if context else ''


def _keep_traceback(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile(
        'w', prefix='mmdet-sssd-', suffix='.log', delete=False, encoding='utf-8'
    ) as file:
        traceback.print_exception(error, file=file)
    return file.name
