import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmdet_sssd.commands import pictograms, shapes


@pytest.fixture(scope='module')
def data_set(tmp_path_factory):
    out = tmp_path_factory.mktemp('pictograms')
    shapes.draw_data_set(out, train=150, val=2, test=3, hard=True)
    return out


def annotations(root, split):
    coco = COCO(str(root / f'annotations/{split}.json'))
    return {
        image_id: coco.loadAnns(sorted(coco.getAnnIds(imgIds=[image_id]))) for image_id in coco.imgs
    }


@pytest.mark.parametrize('hard', [False, True])
def test_more_images_leave_the_first_ones_as_they_were(tmp_path, hard):
    for name, train, seed in (('few', 3, 0), ('more', 5, 0), ('other', 3, 1)):
        shapes.draw_data_set(tmp_path / name, train, 1, seed=seed, hard=hard)
    few, more, other = (annotations(tmp_path / x, 'train') for x in ('few', 'more', 'other'))
    assert few == {i: more[i] for i in (1, 2, 3)} != other
    for path in (tmp_path / 'few/train').iterdir():
        assert path.read_bytes() == (tmp_path / 'more/train' / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / 'other/train' / path.name).read_bytes()


def test_each_split_has_its_own_images_of_all_classes(data_set):
    first = [(data_set / split / '000001.png').read_bytes() for split in ('train', 'val', 'test')]
    assert len({*first}) == 3
    assert cv2.imread(str(data_set / 'train/000001.png')).shape == (96, 96, 3)
    assert len(annotations(data_set, 'test')) == 3
    found = {x['category_id'] for image in annotations(data_set, 'train').values() for x in image}
    assert found == {*range(1, 1 + len(pictograms.CLASSES))}


def test_boxes_are_tight_around_what_is_seen(data_set):
    coco = COCO(str(data_set / 'annotations/train.json'))
    boxes = []
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        x, y, width, height = annotation['bbox']
        assert [x, y] == [columns[0], rows[0]]
        assert [x + width - 1, y + height - 1] == [columns[-1], rows[-1]]
        boxes.append([x, y, x + width, y + height])
    boxes = np.array(boxes)
    assert (boxes[:, :2] == 0).any()  # some are cut off
    assert (boxes[:, 2:] == 96).any()


def test_an_objects_pixels_have_two_colors_and_nobody_elses(monkeypatch):
    """Where neither texture, blur nor noise is added, body and mark are all that a mask covers."""
    monkeypatch.setattr(pictograms.cv2, 'GaussianBlur', lambda image, *_: image)
    monkeypatch.setattr(
        pictograms, 'texture', lambda size, _: np.zeros((size, size, 3), np.float32)
    )
    for seed in range(30):
        rng = np.random.default_rng(seed)
        noiseless = NoNoise(rng)
        image, objects = pictograms.draw_image(96, noiseless)
        assert not objects or np.sum([mask for _, mask in objects], 0).max() == 1
        for _, mask in objects:
            inner = cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0
            plain = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, np.ones((3, 3))).max(2) == 0
            assert len(np.unique(image[inner & plain], axis=0)) <= 2


class NoNoise:
    """A source of random numbers without normal noise."""

    def __init__(self, rng):
        self.rng = rng

    def __getattr__(self, name):
        return getattr(self.rng, name)

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


def test_every_class_looks_different_at_every_scale():
    for side in pictograms.TEMPLATE_SIDES:
        seen = [pictograms.template(i, side) for i in range(len(pictograms.CLASSES))]
        for i, first in enumerate(seen):
            for second in seen[:i]:
                assert np.abs(first - second).sum() > 0.01 * side**2
