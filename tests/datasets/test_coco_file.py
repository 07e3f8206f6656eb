import json

import pytest

from mmdet_sssd import ConfigError
from mmdet_sssd.datasets.coco_file import read_coco

IMAGES = [{'id': 1, 'file_name': 'a.jpg'}]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'a.json')


def write(path, content):
    with open(path, 'w', encoding='utf-8') as file:
        file.write(content if isinstance(content, str) else json.dumps(content))


def test_missing_lists_are_empty(path):
    write(path, {'images': IMAGES, 'categories': []})
    expected = {'images': IMAGES, 'annotations': [], 'categories': []}
    assert read_coco(path, '') == expected


@pytest.mark.parametrize(
    'content',
    [
        'not json',
        [],
        {'images': IMAGES},
        {'images': IMAGES, 'categories': [{'id': 1}]},
        {'images': [{}], 'categories': []},
        {'images': ['a.jpg'], 'categories': []},
        None,
    ],
)
def test_missing_files_and_other_formats_are_refused_with_the_key(path, content):
    if content is not None:
        write(path, content)
    with pytest.raises(ConfigError, match=r'^x\.ann_file: .*a\.json'):
        read_coco(path, 'x.ann_file')
