import logging
import os
import pickle
import subprocess
import sys

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmdet_sssd import ConfigError
from mmdet_sssd.checkpoints import loading
from mmdet_sssd.checkpoints.loading import load_from_torchvision

WEIGHTS = {'a': torch.arange(3.0)}


class Marker:
    """Unpickling it leaves a folder behind, as something worse could."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Reaching:
    """Unpickling it gets an attribute of a class that the restricted load knows."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return getattr, (HistoryBuffer, self.name)


LOADERS = """
from mmengine.runner import CheckpointLoader, checkpoint
def loaders():
    return {**CheckpointLoader._schemes, 'download': checkpoint.load_url}
before = loaders()
import mmdet_sssd
from mmdet_sssd.checkpoints import loading
assert loaders() == before
loading.install()
after = loaders()
assert after[''] is loading.load_from_local
assert after['download'] is not before['download']
loading.install()
assert loaders() == after
"""


@pytest.fixture(autouse=True)
def _installed():
    loading.install()


@pytest.fixture
def warnings(monkeypatch):
    """What the loader logs as a warning."""
    logged = []

    def note(message, logger=None, level=logging.INFO):
        if level == logging.WARNING:
            logged.append(message)

    monkeypatch.setattr('mmdet_sssd.checkpoints.loading.print_log', note)
    return logged


def test_importing_the_package_leaves_loaders_as_they_are():
    subprocess.run([sys.executable, '-c', LOADERS], check=True)


def test_plain_checkpoints_load_restricted(tmp_path, warnings):
    path = tmp_path / 'plain.pth'
    torch.save({'meta': {'epoch': 1}, 'state_dict': WEIGHTS}, path)
    loaded = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    assert torch.equal(loaded['state_dict']['a'], WEIGHTS['a'])
    assert warnings == []


def test_training_checkpoints_load_restricted(tmp_path, warnings):
    path = tmp_path / 'training.pth'
    hub = {'loss': HistoryBuffer([1.5, 2.5], [1, 3]), 'iter': np.int64(4), 'ap': np.float32(0.5)}
    hub['random_state'] = np.random.RandomState(0).get_state()
    torch.save({'state_dict': WEIGHTS, 'message_hub': hub}, path)
    loaded = CheckpointLoader.load_checkpoint(str(path), 'cpu')['message_hub']
    assert loaded['loss'].statistics('mean', 2) == (1.5 + 2.5) / (1 + 3)
    assert loaded['loss'].data[0].tolist() == [1.5, 2.5]
    assert (loaded['iter'], loaded['ap']) == (4, 0.5)
    assert warnings == []


def test_other_objects_are_loaded_with_a_warning_that_names_the_file(tmp_path, warnings):
    path = tmp_path / 'marked.pth'
    torch.save({'state_dict': WEIGHTS, 'extra': Marker(tmp_path / 'unpickled')}, path)
    CheckpointLoader.load_checkpoint(str(path), 'cpu')
    (message,) = warnings
    assert str(path) in message
    assert 'open only checkpoints that you trust' in message


@pytest.mark.parametrize('name', ['update', '__init__', '__class__', '__dict__'])
def test_a_restricted_load_reaches_nothing_but_statistics(tmp_path, warnings, name):
    path = tmp_path / 'reaching.pth'
    torch.save({'state_dict': WEIGHTS, 'extra': Reaching(name)}, path)
    CheckpointLoader.load_checkpoint(str(path), 'cpu')
    assert len(warnings) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing\.pth cannot be found'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'nothing.pth'))
    with pytest.raises(ConfigError, match='is a folder; give the path of a checkpoint'):
        CheckpointLoader.load_checkpoint(str(tmp_path), 'cpu')


def test_downloads_stay_restricted(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    plain, marked = tmp_path / 'plain.pth', tmp_path / 'marked.pth'
    torch.save(WEIGHTS, plain)
    torch.save({'state_dict': WEIGHTS, 'extra': Marker(tmp_path / 'unpickled')}, marked)
    load_url = mmengine.runner.checkpoint.load_url
    assert torch.equal(load_url(plain.as_uri(), progress=False)['a'], WEIGHTS['a'])
    with pytest.raises(ConfigError, match=r'marked\.pth holds Python objects .* downloads may not'):
        load_url(marked.as_uri(), progress=False)
    assert not (tmp_path / 'unpickled').exists()
    CheckpointLoader.load_checkpoint(str(marked), 'cpu')  # the marker does work
    assert (tmp_path / 'unpickled').exists()


def test_every_downloading_scheme_uses_the_restricted_loader(monkeypatch):
    def refuse(url, *args, **kwargs):
        assert kwargs['weights_only'] is True
        raise pickle.UnpicklingError

    monkeypatch.setattr('mmdet_sssd.checkpoints.loading._load_url', refuse)
    for url in ('http://a.b/c.pth', 'https://a.b/c.pth', 'open-mmlab://detectron/resnet50_caffe'):
        with pytest.raises(ConfigError, match='downloads may not'):
            CheckpointLoader.load_checkpoint(url)


@pytest.mark.parametrize('content', ['empty', 'text', 'truncated'])
def test_a_broken_checkpoint_is_named(tmp_path, content):
    path = tmp_path / 'broken.pth'
    torch.save(WEIGHTS, path)
    whole = path.read_bytes()
    path.write_bytes({'empty': b'', 'text': b'text', 'truncated': whole[:-100]}[content])
    with pytest.raises(ConfigError, match=r'broken\.pth cannot be read as a whole checkpoint'):
        CheckpointLoader.load_checkpoint(str(path))


def test_torchvision_weights_need_no_torchvision(monkeypatch):
    urls = []
    monkeypatch.setattr(
        'mmdet_sssd.checkpoints.loading.load_from_http', lambda url, _: urls.append(url) or WEIGHTS
    )
    assert load_from_torchvision('torchvision://resnet50') is WEIGHTS
    (url,) = urls
    assert url.endswith('/resnet50-0676ba61.pth')
    with pytest.raises(
        ConfigError, match=r'torchvision://resnet9: mmengine lists no weights of that name'
    ):
        load_from_torchvision('torchvision://resnet9')
