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
    write(path, {'images': IMAGES})
    expected = {'images': IMAGES, 'annotations': [], 'categories': []}
    assert read_coco(path, '', {'images': {'id', 'file_name'}}) == expected


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        ('not json', 'JSONDecodeError'),
        ([], 'TypeError'),
        ({'images': IMAGES}, "KeyError: 'categories'"),
        ({'images': IMAGES, 'categories': [{'id': 1}]}, "KeyError: 'name in categories'"),
        ({'images': [{}], 'categories': []}, "KeyError: 'id in images'"),
        ({'images': ['a.jpg'], 'categories': []}, 'AttributeError'),
    ],
)
def test_other_formats_are_refused_with_the_key(path, content, found):
    write(path, content)
    with pytest.raises(
        ConfigError,
        match=rf'^x\.ann_file: .*a\.json .* is not a COCO annotation file \({found}.*; accepted: JSON '
        'with images and categories$',
    ):
        read_coco(path, 'x.ann_file')


def test_a_missing_file_is_named_with_where_it_was_looked_for(path):
    with pytest.raises(
        ConfigError, match=r'^x\.ann_file: there is no .*a\.json \(looked for from /.*\)'
    ):
        read_coco(path, 'x.ann_file')
