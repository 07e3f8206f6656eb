"""Runs commands in this process, and writes programs that stand in for others."""

import io
import os
from contextlib import redirect_stderr
from pathlib import Path
from unittest import mock

import pytest

from mmdet_sssd_cli.commands import command_line


def run_command(*args) -> tuple[int, str]:
    """Run a command; gives its exit code and what it wrote to stderr."""
    # not click's runner, which closes the streams that mmengine's loggers keep
    environment = mock.patch.dict(os.environ)
    with environment, redirect_stderr(io.StringIO()) as stderr, pytest.raises(SystemExit) as end:
        command_line.main([str(x) for x in args])
    return end.value.code, stderr.getvalue()


def error_of(*args, code=1) -> str:
    """Run a command that must fail, with one line; gives that without its ``error:``."""
    found, stderr = run_command(*args)
    line = stderr.splitlines()[-1]
    assert (found, line.split(' ')[0]) == (code, 'error:'), stderr
    assert 'Traceback' not in stderr
    return line.removeprefix('error: ')


def write_program(path: Path, text: str) -> None:
    """Write a script that can be run."""
    path.write_text(text)
    path.chmod(0o755)
