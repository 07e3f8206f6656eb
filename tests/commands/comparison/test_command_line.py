"""What `compare` takes from its command line."""

import os
import signal
import sys

import click
import pytest

from mmdet_sssd.commands.comparison.study import Study
from mmdet_sssd_cli.compare import command_line, read_seeds

from ...command import run_command


@pytest.mark.parametrize('command', [['mmdet-sssd', 'compare'], ['compare.py']])
def test_the_command_is_kept_as_it_can_be_given_again(monkeypatch, command):
    for name in [name for name in os.environ if name.startswith('SSSD_')]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, 'argv', [*command, 'my config.py', '--seeds', '3,'])
    monkeypatch.setenv('SSSD_DATA_ROOT', 'data/a b')
    expected = "SSSD_DATA_ROOT='data/a b' mmdet-sssd compare 'my config.py' --seeds 3,"
    assert command_line() == expected


@pytest.mark.parametrize(
    ('text', 'seeds'), [('3', [0, 1, 2]), ('3,', [3]), ('3,4, 5', [3, 4, 5]), ('0,', [0])]
)
def test_seeds_are_a_number_of_them_or_they_themselves(text, seeds):
    assert read_seeds(None, None, text) == seeds


@pytest.mark.parametrize('text', ['0', '', ',', 'a', '-1', '1.5'])
def test_what_are_no_seeds_is_refused(text):
    with pytest.raises(click.BadParameter, match='accepted: a number above 0, or seeds like'):
        read_seeds(None, None, text)


def test_a_stopped_comparison_ends_as_a_preempted_run_does(tmp_path, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, 'run', stop)
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    code, said = run_command('compare', 'sssd_retinanet_r50_fpn_2x_coco', '--work-dir', tmp_path)
    assert code == 75
    assert said.startswith('stopped; the same command goes on')
