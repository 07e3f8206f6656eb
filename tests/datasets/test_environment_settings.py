import json
import re
from pathlib import Path

import pytest

from mmdet_sssd import ConfigError
from mmdet_sssd.datasets import (
    VARIABLES,
    check_variables,
    positive_integers,
    read_coco_summary,
)

CATEGORIES = [{'id': 7, 'name': 'dog'}, {'id': 2, 'name': 'cat'}]


def test_summary(tmp_path):
    content = {'images': [{'id': i} for i in range(3)], 'categories': CATEGORIES}
    (tmp_path / 'train.json').write_text(json.dumps(content))
    assert read_coco_summary(str(tmp_path), 'train.json', '') == (('dog', 'cat'), 3)
    (tmp_path / 'train.json').write_text(json.dumps(content | {'categories': []}))
    with pytest.raises(ConfigError, match=r'^A: .*train\.json has no categories'):
        read_coco_summary(str(tmp_path), 'train.json', 'A')


def test_positive_integers():
    assert positive_integers('24', 'N') == (24,)
    assert positive_integers('1333x800', 'N', count=2) == (1333, 800)
    assert positive_integers('2', 'N', least=2) == (2,)


@pytest.mark.parametrize(
    ('text', 'count', 'least'),
    [('', 1, 1), ('0', 1, 1), ('1', 1, 2), ('2.5', 1, 1), ('800', 2, 1), ('1x2x3', 2, 1)],
)
def test_other_text_is_named_with_the_variable(text, count, least):
    accepted = rf"SSSD_X is '{text}' .*; accepted: [a2] whole.* of {least} or more"
    with pytest.raises(ConfigError, match=accepted):
        positive_integers(text, 'SSSD_X', count, least)


def test_misspelt_variables_are_named(monkeypatch):
    for name in ('SSSD_MAX_EPOCHS', 'SSSD_TEST_ANN', 'SSSD_CLUSTER'):
        monkeypatch.setenv(name, '1')
    check_variables()
    monkeypatch.setenv('SSSD_TRIAN_ANN', 'a.json')
    with pytest.raises(ConfigError, match=r'SSSD_TRIAN_ANN is set .* did you mean SSSD_TRAIN_ANN'):
        check_variables()


def test_test_labels_need_their_images_where_parts_have_folders(monkeypatch):
    monkeypatch.setenv('SSSD_TEST_ANN', 'test.json')
    check_variables()
    monkeypatch.setenv('SSSD_TRAIN_IMG', 'train')
    monkeypatch.setenv('SSSD_VAL_IMG', 'val')
    with pytest.raises(ConfigError, match=r'SSSD_TEST_IMG, the folder of its images, is not'):
        check_variables()
    monkeypatch.setenv('SSSD_TEST_IMG', 'test')
    check_variables()


def test_every_variable_that_a_config_reads_is_known():
    configs = Path(__file__).parents[2].glob('configs/**/*.py')
    read = {name for path in configs for name in re.findall(r'\bSSSD_[A-Z_]+', path.read_text())}
    assert read <= {*VARIABLES}
