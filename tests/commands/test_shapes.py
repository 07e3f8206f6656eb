import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmdet_sssd import ConfigError
from mmdet_sssd.commands import quickstart, shapes
from mmdet_sssd.commands.quickstart import run_quickstart


def contents(folder):
    return {x.relative_to(folder): x.read_bytes() for x in folder.rglob('*.png')}


@pytest.mark.parametrize('hard', [False, True])
def test_images_depend_on_their_number_and_the_seed_alone(tmp_path, hard):
    for name, train, seed in (('few', 3, 0), ('more', 5, 0), ('other', 3, 1)):
        shapes.draw_data_set(tmp_path / name, train, 1, seed=seed, hard=hard)
    few, more, other = (contents(tmp_path / x) for x in ('few', 'more', 'other'))
    assert few.items() < more.items()
    assert not few.items() & other.items()
    first = [x for name, x in few.items() if name.name == '000001.png']
    assert len({*first}) == len(first) == 2  # each split has its own
    side = 96 if hard else 128
    assert cv2.imread(str(tmp_path / 'few/train/000001.png')).shape == (side, side, 3)
    annotations = [
        json.loads((tmp_path / x / 'annotations/train.json').read_text()) for x in ('few', 'more')
    ]
    known = annotations[1]['annotations'][: len(annotations[0]['annotations'])]
    assert annotations[0]['annotations'] == known


@pytest.fixture(scope='module', params=[False, True], ids=['easy', 'hard'])
def data_set(tmp_path_factory, request):
    out = tmp_path_factory.mktemp('shapes')
    shapes.draw_data_set(out, train=80, val=1, size=128, hard=request.param)
    return out


def test_boxes_and_areas_are_those_of_masks_that_do_not_overlap(data_set):
    coco = COCO(str(data_set / 'annotations/train.json'))
    for image in coco.imgToAnns.values():
        masks = [coco.annToMask(x) for x in image]
        assert np.sum(masks, 0).max() == 1
        for annotation, mask in zip(image, masks, strict=True):
            assert mask.sum() == annotation['area'] >= shapes.MIN_AREA
            assert list(cv2.boundingRect(mask)) == annotation['bbox']


def test_there_are_all_classes_and_scales_and_every_image_is_there(data_set):
    content = json.loads((data_set / 'annotations/train.json').read_text())
    assert len(content['images']) == 80
    for image in content['images']:
        assert cv2.imread(str(data_set / 'train' / image['file_name'])).shape == (128, 128, 3)
    used = {x['category_id'] for x in content['annotations']}
    assert used == {x['id'] for x in content['categories']}
    sides = [max(x['bbox'][2:]) for x in content['annotations']]
    assert min(sides) < 15
    assert max(sides) > 60


def test_only_drawn_images_are_replaced(tmp_path):
    path = tmp_path / 'annotations/train.json'
    for length in (None, 60, 10, 0):  # also what a killed process has written of it
        shapes.draw_data_set(tmp_path, 1, 1)
        path.write_text(path.read_text()[:length])
    path = tmp_path / 'annotations/test.json'
    path.write_text('{"images": []}')
    with pytest.raises(ConfigError, match=r'test\.json is not of drawn images'):
        shapes.draw_data_set(tmp_path, 1, 1)
    assert path.read_text() == '{"images": []}'


@pytest.mark.parametrize('name', ['run', 'test'])
def test_a_quickstart_replaces_only_its_own_files(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'photo.jpg').write_bytes(b'photo')
    with pytest.raises(ConfigError, match=rf'--out: .*{name} is not of a quickstart'):
        run_quickstart('config.py', tmp_path, 1, 1, 1)
    assert (tmp_path / name / 'photo.jpg').exists()


def test_a_quickstart_is_of_its_own_data_and_says_where_its_files_are(
    tmp_path, monkeypatch, capsys
):
    def train(config, changes, work_dir):
        Path(work_dir).mkdir()
        Path(work_dir, 'last_checkpoint').write_text('epoch_1.pth')
        seen.update({key: x for key, x in os.environ.items() if key.startswith('SSSD_')})

    def test(*_, work_dir, **__):
        Path(work_dir, 'now/predictions').mkdir(parents=True)
        return {}

    seen = {}
    monkeypatch.setattr(quickstart, 'run_training', train)
    monkeypatch.setattr(quickstart, 'run_test', test)
    monkeypatch.setattr(os, 'environ', os.environ | dict(SSSD_TEST_ANN='mine.json'))
    run_quickstart('configs/any.py', tmp_path, 1, 1, 1)
    assert 'SSSD_TEST_ANN' not in seen
    assert seen['SSSD_DATA_ROOT'] == f'{tmp_path}/shapes'
    assert f'config       {tmp_path}/run/any.py' in capsys.readouterr().out
