import os
import pickle

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmdet_sssd import ConfigError
from mmdet_sssd.runs import load_from_local, loading

WEIGHTS = {'a': torch.arange(3.0)}
LOADERS = [load_from_local, lambda path: CheckpointLoader.load_checkpoint(path, 'cpu')]


class Call:
    """Unpickling it calls a function."""

    def __init__(self, *call):
        self.function, *self.args = call

    def __reduce__(self):
        return self.function, tuple(self.args)


@pytest.mark.parametrize('load', LOADERS)
def test_training_checkpoints_load(tmp_path, load):
    path = tmp_path / 'training.pth'
    hub = {'loss': HistoryBuffer([1.5, 2.5], [1, 3]), 'iter': np.int64(4), 'ap': np.float32(0.5)}
    hub['random_state'] = np.random.RandomState(0).get_state()
    torch.save({'state_dict': WEIGHTS, 'message_hub': hub}, path)
    loaded = load(str(path))['message_hub']
    assert loaded['loss'].statistics('mean', 2) == (1.5 + 2.5) / (1 + 3)
    assert loaded['loss'].data[0].tolist() == [1.5, 2.5]
    assert (loaded['iter'], loaded['ap']) == (4, 0.5)


@pytest.mark.parametrize('load', LOADERS)
def test_nothing_else_is_unpickled(tmp_path, load):
    path = tmp_path / 'other.pth'
    attributes = ('update', '__init__', '__class__', '__dict__')  # of a class that a load knows
    others = [Call(getattr, HistoryBuffer, name) for name in attributes]
    for other in (Call(os.mkdir, str(tmp_path / 'unpickled')), *others):
        torch.save({'state_dict': WEIGHTS, 'extra': other}, path)
        with pytest.raises((ConfigError, pickle.UnpicklingError)):
            load(str(path))
    assert not (tmp_path / 'unpickled').exists()


@pytest.mark.parametrize('content', [b'', b'text', 'truncated', 'folder', 'missing'])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / 'broken.pth'
    if content == 'folder':
        path.mkdir()
    elif content == 'truncated':
        torch.save(WEIGHTS, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif content != 'missing':
        path.write_bytes(content)
    with pytest.raises((ConfigError, FileNotFoundError), match=r'broken\.pth'):
        load_from_local(str(path))


def test_downloads_are_restricted(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    plain, marked = tmp_path / 'plain.pth', tmp_path / 'marked.pth'
    torch.save(WEIGHTS, plain)
    extra = Call(os.mkdir, str(tmp_path / 'unpickled'))
    torch.save({'state_dict': WEIGHTS, 'extra': extra}, marked)
    load_url = mmengine.runner.checkpoint.load_url
    assert torch.equal(load_url(plain.as_uri(), progress=False)['a'], WEIGHTS['a'])
    for forced in ({}, dict(weights_only=False)):
        with pytest.raises(ConfigError, match=r'marked\.pth'):
            load_url(marked.as_uri(), progress=False, **forced)
    assert not (tmp_path / 'unpickled').exists()
    with pytest.raises(ConfigError, match=r'none\.pth'):
        load_url((tmp_path / 'none.pth').as_uri(), progress=False)


def test_every_downloading_scheme_is_restricted(monkeypatch):
    def refuse(url, *args, weights_only, **kwargs):
        assert weights_only
        raise pickle.UnpicklingError

    load_url = mmengine.runner.checkpoint.load_url
    monkeypatch.setattr(
        mmengine.runner.checkpoint,
        'load_url',
        lambda *args, **kwargs: load_url.func(refuse, *args, **kwargs),
    )
    for url in ('http://a.b/c.pth', 'https://a.b/c.pth', 'open-mmlab://detectron/resnet50_caffe'):
        with pytest.raises(ConfigError):
            CheckpointLoader.load_checkpoint(url)


def test_torchvision_weights_need_no_torchvision(monkeypatch):
    urls = []
    monkeypatch.setattr(
        mmengine.runner.checkpoint, 'load_from_http', lambda url, _: urls.append(url) or WEIGHTS
    )
    assert loading.load_from_torchvision('torchvision://resnet50') is WEIGHTS
    assert urls[0].endswith('/resnet50-0676ba61.pth')
    with pytest.raises(ConfigError, match='resnet9'):
        loading.load_from_torchvision('torchvision://resnet9')
