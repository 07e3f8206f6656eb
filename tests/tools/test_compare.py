"""What `compare` takes from its command line."""

import os
import runpy
import shlex
import sys
from pathlib import Path

COMPARE = Path(__file__).parents[2] / 'tools/compare.py'


def test_the_command_is_kept_as_it_can_be_given_again(monkeypatch):
    for name in [name for name in os.environ if name.startswith('SSSD_')]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, 'argv', ['compare.py', 'my config.py', '--seeds', '3,'])
    monkeypatch.setenv('SSSD_DATA_ROOT', 'data/a b')
    command = runpy.run_path(str(COMPARE))['command_line']()
    assert command == "SSSD_DATA_ROOT='data/a b' compare 'my config.py' --seeds 3,"
    assert shlex.split(command)[-3:] == ['my config.py', '--seeds', '3,']
