"""The visualize command: which images it draws, with which labels, and what it refuses."""

from unittest.mock import MagicMock

import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.visualization import image_features

from ...command import error_of, run_command
from ...small_runner import LABELS_FIRST, LABELS_LAST, LOAD_IMAGE, PACK, draw_shapes, small_runner


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Data, config and checkpoint of a run."""
    folder = tmp_path_factory.mktemp('visualize')
    runner = small_runner(folder / 'run', draw_shapes(folder / 'shapes'))
    runner.cfg.dump(folder / 'config.py')
    runner.save_checkpoint(
        str(folder), 'trained.pth', save_optimizer=False, save_param_scheduler=False
    )
    student = dict(meta={}, state_dict=runner.model.student.state_dict())
    torch.save(student, folder / 'student.pth')
    return folder


def changed_config(folder, options=None, pipeline=None):
    cfg = Config.fromfile(folder / 'config.py')
    cfg.merge_from_dict(options or {})
    if pipeline:
        cfg.test_dataloader.dataset.pipeline = pipeline
    cfg.dump(folder / 'changed.py')
    return folder / 'changed.py'


@pytest.fixture
def seen(monkeypatch):
    """The samples whose features are looked at; the pictures stay empty."""
    samples, look = [], image_features.look_at_features
    monkeypatch.setattr(
        image_features, 'look_at_features', lambda *args: samples.append(args[-1]) or look(*args)
    )
    monkeypatch.setattr(image_features, 'draw_features', lambda *_: Figure())
    return samples


@pytest.mark.parametrize('pipeline', [LABELS_LAST, LABELS_FIRST])
def test_an_image_is_drawn_with_its_labels_in_input_pixels(trained, seen, pipeline):
    config = changed_config(trained, pipeline=pipeline)
    command = ('visualize', config, trained / 'trained.pth', 'val/000002.png')
    assert run_command(*command, '--out', trained / 'out')[0] == 0
    (sample,) = seen
    assert sample.img_path == str(trained / 'shapes/val/000002.png')
    boxes = sample.gt_instances.bboxes
    assert boxes[:, 3].max() <= 48  # 64 pixels in the original, stretched to 96x48
    assert boxes[:, 2].max() > 64
    assert (trained / 'out/000002.png').is_file()


def test_without_names_images_at_even_distances_are_drawn(trained, seen):
    command = ('visualize', changed_config(trained), trained / 'trained.pth', '--num-images', 2)
    changes = 'val_dataloader.dataset.indices=3'
    assert run_command(*command, '--out', trained / 'out', changes)[0] == 0
    assert [x.img_path[-10:] for x in seen] == ['000001.png', '000003.png']


def test_pictures_of_images_of_one_name_stay_apart(trained, seen):
    config, image = changed_config(trained), 'val/000002.png'
    command = ('visualize', config, trained / 'trained.pth', image, image)
    assert run_command(*command, '--out', trained / 'twice')[0] == 0
    assert {x.name for x in (trained / 'twice').iterdir()} == {'000002.png', '000002_2.png'}


def test_an_image_is_named_by_as_much_of_its_path_as_is_needed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    dataset = MagicMock(__len__=lambda _: 2)
    dataset.get_data_info = lambda i: dict(img_path=f'data/cam{i}/a.png')
    for name in ('cam1/a.png', f'{tmp_path}/data/cam1/a.png'):
        assert (
            image_features.labelled_images(dataset, [name], 1)[0]['img_path'] == 'data/cam1/a.png'
        )
    with pytest.raises(ConfigError, match=r'a\.png is the name of 2 images'):
        image_features.labelled_images(dataset, ['a.png'], 1)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(checkpoint='student.pth'), 'student.pth does not belong to'),
        (dict(options={'model.type': 'RetinaNet'}), 'has model.type=RetinaNet; accepted: SSSD'),
        (dict(options={'val_dataloader': None}), 'has no val_dataloader'),
        (dict(pipeline=[LOAD_IMAGE, PACK]), 'test_dataloader.dataset loads no gt_bboxes'),
        (dict(image='train/000007.png'), 'train/000007.png is not among the 4 images of val'),
    ],
    ids=['exported student', 'stock config', 'no data', 'no labels', 'another image'],
)
def test_what_has_no_teacher_or_no_labels_is_refused(trained, changes, message):
    checkpoint = trained / changes.pop('checkpoint', 'trained.pth')
    image = changes.pop('image', '000001.png')
    assert message in error_of('visualize', changed_config(trained, **changes), checkpoint, image)
