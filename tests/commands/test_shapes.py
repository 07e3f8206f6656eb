import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmdet_sssd.commands import shapes


def contents(folder):
    return {x.relative_to(folder): x.read_bytes() for x in folder.rglob('*') if x.is_file()}


def test_the_same_seed_gives_the_same_files_and_another_others(tmp_path):
    for name, seed in (('first', 0), ('again', 0), ('other', 1)):
        shapes.draw_data_set(tmp_path / name, train=3, val=2, seed=seed)
    first, again, other = (contents(tmp_path / x) for x in ('first', 'again', 'other'))
    assert first == again
    assert first != other


@pytest.fixture(scope='module')
def data_set(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes')
    shapes.draw_data_set(out, train=80, val=20)
    return out


def test_boxes_and_areas_are_those_of_the_masks(data_set):
    coco = COCO(str(data_set / 'annotations/train.json'))
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation['area'] >= shapes.MIN_AREA
        assert list(cv2.boundingRect(mask)) == annotation['bbox']


def test_masks_of_an_image_do_not_overlap(data_set):
    coco = COCO(str(data_set / 'annotations/train.json'))
    for image_id in coco.imgs:
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        if annotations:
            assert np.sum([coco.annToMask(x) for x in annotations], 0).max() == 1


def test_there_are_all_classes_and_scales_and_every_image_is_there(data_set):
    content = json.loads((data_set / 'annotations/train.json').read_text())
    assert len(content['images']) == 80
    for image in content['images']:
        assert cv2.imread(str(data_set / 'train' / image['file_name'])).shape == (128, 128, 3)
    used = {x['category_id'] for x in content['annotations']}
    assert used == {x['id'] for x in content['categories']} == {1, 2, 3, 4, 5}
    sides = [max(x['bbox'][2:]) for x in content['annotations']]
    assert min(sides) < 15
    assert max(sides) > 60
