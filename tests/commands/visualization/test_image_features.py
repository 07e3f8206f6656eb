import logging
import re
from unittest import mock

import cv2
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config

from mmdet_sssd.commands.visualization import image_features

from ...command import error_of, run_command
from ...small_runner import LABELS_FIRST, LOAD_IMAGE, PACK, draw_shapes, small_runner


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
    """The samples whose features are looked at."""
    samples, look = [], image_features.look_at_features
    monkeypatch.setattr(
        image_features, 'look_at_features', lambda *args: samples.append(args[-1]) or look(*args)
    )
    return samples


def check_boxes(sample):
    boxes = sample.gt_instances.bboxes
    assert boxes[:, 3].max() <= 48  # 64 pixels in the original, stretched to 96x48
    assert boxes[:, 2].max() > 64


def test_an_image_is_drawn_with_its_labels_in_input_pixels(trained, seen):
    out = trained / 'out'
    command = ('visualize', changed_config(trained), trained / 'trained.pth', 'val/000002.png')
    assert run_command(*command, '--out', out)[0] == 0
    (sample,) = seen
    assert sample.img_path == str(trained / 'shapes/val/000002.png')
    check_boxes(sample)
    picture = cv2.imread(str(out / '000002.png'))
    assert picture.shape[0] > 500
    assert picture.std() > 30


def test_images_of_the_training_data_are_found(trained, seen, monkeypatch):
    monkeypatch.setattr(image_features, 'draw_features', lambda *_: Figure())
    config = changed_config(trained, pipeline=LABELS_FIRST)
    image = trained / 'shapes/train/000007.png'
    out = ('--out', trained / 'found')
    assert run_command('visualize', config, trained / 'trained.pth', image, *out)[0] == 0
    (sample,) = seen
    assert sample.img_path == str(image)
    check_boxes(sample)


def test_an_image_without_labels_is_named_with_what_was_searched(trained):
    config = changed_config(trained)
    message = error_of('visualize', config, trained / 'trained.pth', '000001.png', 'other.png')
    assert message.startswith('other.png is not in the data sets of')
    assert 'val.json (4 images)' in message
    assert 'train.json (8 images)' in message


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(checkpoint='student.pth'),
            r'.*student\.pth does not belong to .*changed\.py; .*teachers\.teacher\.',
        ),
        (dict(checkpoint='none.pth'), r'.*none\.pth can ?not be found'),
        (
            dict(options={'model.type': 'RetinaNet'}),
            r'.*changed\.py has model\.type=RetinaNet; accepted: SSSDDistiller',
        ),
        (
            dict(pipeline=[LOAD_IMAGE, PACK]),
            r'.*test_dataloader\.dataset loads no gt_bboxes.*LoadAnnotations',
        ),
    ],
    ids=['exported student', 'no checkpoint', 'stock config', 'no labels'],
)
def test_anything_but_a_distiller_and_its_checkpoint_is_refused(trained, changes, message):
    checkpoint = trained / changes.pop('checkpoint', 'trained.pth')
    found = error_of('visualize', changed_config(trained, **changes), checkpoint, '000001.png')
    assert re.match(message, found)


def test_without_images_predictions_are_drawn_of_any_detector(trained, capsys):
    out = trained / 'predicted'
    command = ('visualize', changed_config(trained), trained / 'trained.pth', '--num-images', 2)
    with mock.patch('mmengine.logging.print_log') as print_log:  # of scopes not found
        assert run_command(*command, '--out', out, 'val_dataloader.dataset.indices=3')[0] == 0
    assert all(call.kwargs['level'] < logging.WARNING for call in print_log.call_args_list)
    assert '2 images, ground truth on the left' in capsys.readouterr().out
    assert cv2.imread(str(out / 'predictions.png')).std() > 10  # something is drawn
