import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from torch.utils.data import DataLoader

from mmdet_sssd.datasets import unreadable_images_named
from mmdet_sssd.errors import user_error

WHOLE = cv2.imencode('.png', np.eye(64, dtype='uint8'))[1].tobytes()
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


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', NOT_WHOLE),
        (b'<html>', NOT_WHOLE),
        (WHOLE[:30], NOT_WHOLE),
        (None, 'cannot be read (No such file or directory); replace the file'),
    ],
)
def test_the_file_is_named(tmp_path, content, message, num_workers):
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
