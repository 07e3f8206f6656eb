import io

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from PIL import Image
from torch.utils.data import DataLoader

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.dry_run import warnings_listed
from mmdet_sssd.checks.images import check_image_files, unreadable_images_named
from mmdet_sssd.datasets.branches import hide_labels
from mmdet_sssd.errors import user_error

WHOLE = cv2.imencode('.png', np.eye(64, dtype='uint8'))[1].tobytes()
NOISE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype='uint8')
JPEG = cv2.imencode('.jpg', NOISE)[1].tobytes()
TURNED = Image.Exif()
TURNED[0x0112] = 6
NOT_WHOLE = 'cannot be read (not a whole image); replace the file'


class Images:
    """One image, as data sets of mmdet load it."""

    def __init__(self, path):
        self.path = path
        self.load = LoadImageFromFile()

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.load({'img_path': str(self.path)})['img'].shape


def read(path, num_workers):
    with unreadable_images_named():
        (image,) = DataLoader(Images(path), num_workers=num_workers, collate_fn=lambda batch: batch)
    return image


@pytest.mark.parametrize(
    ('content', 'num_workers', 'message'),
    [
        (b'', 1, NOT_WHOLE),
        (b'<html>', 0, NOT_WHOLE),
        (WHOLE[:30], 0, NOT_WHOLE),
        (None, 1, 'cannot be read (No such file or directory); replace the file'),
    ],
)
def test_the_file_is_named(tmp_path, content, num_workers, message):
    path = tmp_path / 'a.png'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(path, num_workers)
    assert user_error(caught.value).startswith(f'{path} {message}')


def test_whole_images_are_read_as_before(tmp_path):
    (tmp_path / 'a.png').write_bytes(WHOLE)
    before = LoadImageFromFile.transform
    assert read(tmp_path / 'a.png', 0) == [(64, 64, 3)]
    assert LoadImageFromFile.transform is before


class LabelledImages(BaseDataset):
    """A good image and one to be checked, twice each."""

    def __init__(self, path, load, size):
        self.infos = [dict(img_path=str(x)) for x in (path.with_name('good.png'), path)] * 2
        self.infos[1] |= dict(width=size[0], height=size[1])
        super().__init__(pipeline=[load], serialize_data=False)

    def load_data_list(self):
        return self.infos


def check(path, content, size=(64, 48), **settings) -> list[str]:
    path.with_name('good.png').write_bytes(WHOLE)
    if content is not None:
        path.write_bytes(content)
    dataset = LabelledImages(path, dict(type='LoadImageFromFile', **settings), size)
    with warnings_listed() as warnings:
        check_image_files([dataset])
    return warnings


def turned_jpeg() -> bytes:
    """A picture of 64 x 48 that a camera on its side took."""
    with io.BytesIO() as file:
        Image.new('RGB', (64, 48)).save(file, 'JPEG', exif=TURNED)
        return file.getvalue()


@pytest.mark.parametrize('content', [b'', b'<html>', WHOLE[:30], JPEG[:-20], None])
def test_files_that_cannot_be_loaded_are_named_before_training(tmp_path, content):
    with pytest.raises(ConfigError, match=r'^2 of 4 images .*a\.jpg \(.*; replace the files'):
        check(tmp_path / 'a.jpg', content)


def test_files_without_labels_are_checked(tmp_path):
    path = tmp_path / 'a.jpg'
    check(path, JPEG)
    path.write_bytes(b'')
    dataset = LabelledImages(path, dict(type='LoadImageFromFile'), (64, 48))
    dataset.pipeline.transforms.insert(0, hide_labels)
    with pytest.raises(ConfigError, match=r'^2 of 4 images .*a\.jpg'):
        check_image_files([dataset])


def test_files_that_load_with_a_flaw_are_reported(tmp_path):
    path = tmp_path / 'a.jpg'
    assert check(path, JPEG) == check(path, JPEG + b'more') == []
    assert check(path, cv2.imencode('.bmp', NOISE)[1].tobytes()) == []
    assert check(path, turned_jpeg(), (48, 64)) == []
    assert check(path, turned_jpeg(), color_type='color_ignore_orientation') == []
    assert '64 x 48, labelled as 48 x 64' in check(path, JPEG, (48, 64))[0]
    assert '48 x 64, labelled as 64 x 48' in check(path, turned_jpeg())[0]
    deep = cv2.imencode('.png', np.full((48, 64), 200, np.uint16))[1].tobytes()  # loads as black
    assert '16 bits deep; only the upper 8' in check(path, deep)[0]


def test_what_others_load_is_not_checked(tmp_path):
    check(tmp_path / 'a.jpg', None, backend_args=dict(backend='petrel'))
