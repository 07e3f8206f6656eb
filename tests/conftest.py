import signal

import pytest
import torch
from mmdet.utils import register_all_modules

import mmdet_sssd  # noqa: F401  (registers the package's modules)

from . import quick_configs  # noqa: F401
from .small_runner import draw_shapes

# a shell's background jobs ignore Ctrl-C, and so would the processes that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the tensors are small; threads that wait for a core would cost more


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """The folder of a drawn data set, to be left as it is."""
    return draw_shapes(tmp_path_factory.mktemp('shapes'))


@pytest.fixture(autouse=True)
def _mmdet_scope():
    register_all_modules()


@pytest.fixture(autouse=True)
def _quiet_initialisation(monkeypatch):
    """Init_weights writes a paragraph for each parameter."""
    monkeypatch.setattr('mmengine.model.BaseModule._dump_init_info', lambda *_: None)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
