from pathlib import Path

import pytest

from mmdet_sssd.commands.comparison import jobs

from .synthetic import Comparison


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, 'POLL', 0.02)
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parents[3]))
    return Comparison(tmp_path)
