import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config

from mmdet_sssd.commands.mmdet_tools import user_errors_last
from tools import visualize

from ..small_runner import LABELS_FIRST, LABELS_LAST, LOAD_IMAGE, PACK, draw_shapes, small_runner


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


def draw(monkeypatch, folder, *images, checkpoint='trained.pth', **changes):
    """Run the tool as the command line does, on a changed config, and give the pictures' folder."""
    cfg = Config.fromfile(folder / 'config.py')
    cfg.merge_from_dict(changes.get('options', {}))
    if 'pipeline' in changes:
        cfg.test_dataloader.dataset.pipeline = changes['pipeline']
    cfg.dump(folder / 'changed.py')
    out = folder / 'out'
    command = ['visualize', folder / 'changed.py', folder / checkpoint, *images, '--out', out]
    monkeypatch.setattr(sys, 'argv', [str(x) for x in command])
    with user_errors_last():
        visualize.main()
    return out


@pytest.mark.parametrize(
    ('image', 'pipeline'),
    [('val/000002.png', LABELS_LAST), ('{shapes}/train/000007.png', LABELS_FIRST)],
    ids=['by the end of its path', 'from the training data'],
)
def test_an_image_is_drawn_with_its_labels_in_input_pixels(monkeypatch, trained, image, pipeline):
    seen = []
    look = visualize.look_at_features
    monkeypatch.setattr(
        visualize, 'look_at_features', lambda *args: seen.append(args[-1]) or look(*args)
    )
    shapes = trained / 'shapes'
    out = draw(monkeypatch, trained, image.format(shapes=shapes), pipeline=pipeline)
    (sample,) = seen
    assert sample.img_path == str(shapes / image.split('/', image.count('/') - 1)[-1])
    boxes = sample.gt_instances.bboxes
    assert boxes[:, 3].max() <= 48  # 64 pixels in the original, stretched to 96x48
    assert boxes[:, 2].max() > 64
    picture = cv2.imread(str(out / Path(image).name))
    assert picture.shape[0] > 500
    assert picture.std() > 30


def test_an_image_without_labels_is_named_with_what_was_searched(monkeypatch, trained):
    with pytest.raises(SystemExit) as end:
        draw(monkeypatch, trained, '000001.png', 'other.png')
    message = end.value.code
    assert message.startswith('error: other.png is in none of the data sets of')
    assert 'val.json (4 images)' in message
    assert 'train.json (8 images)' in message


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(checkpoint='student.pth'),
            r'error: .*student\.pth does not belong to .*changed\.py: the model needs .* found none; '
            'accepted: a checkpoint that training with this config wrote',
        ),
        (dict(checkpoint='none.pth'), r'error: checkpoint .*none\.pth cannot be found'),
        (
            dict(options={'model.type': 'RetinaNet'}),
            r'error: .*changed\.py has model\.type=RetinaNet; accepted: the config of an SSSDDistiller',
        ),
        (
            dict(pipeline=[LOAD_IMAGE, PACK]),
            r'error: .*test_dataloader\.dataset loads no gt_bboxes.*LoadAnnotations',
        ),
    ],
    ids=['exported student', 'no checkpoint', 'stock config', 'no labels'],
)
def test_what_is_no_distiller_s_is_refused(monkeypatch, trained, changes, message):
    with pytest.raises(SystemExit, match=message):
        draw(monkeypatch, trained, '000001.png', **changes)
