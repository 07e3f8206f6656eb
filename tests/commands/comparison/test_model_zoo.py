"""What others report is found by the stock config that a config comes from."""

from pathlib import Path

import pytest

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.model_zoo import model_zoo_section, stock_names

ROOT = Path(__file__).parents[3]
ZOO_ROW = ['retinanet_r50_fpn_1x_coco', 'box AP', '36.5', "mmdet's model zoo"]
PAPER_ROW = ['lgd_retinanet_r50_fpn_2x_coco', 'box AP', '39.0', "the paper's authors"]


def rows_of(config):
    (table,) = model_zoo_section(config).tables
    return table.rows


def test_a_stock_config_by_name():
    section = model_zoo_section('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert 'not comparable' in section.text
    (table,) = section.tables
    assert ZOO_ROW in table.rows
    assert PAPER_ROW in table.rows
    assert not any('retinanet_r101' in row[0] for row in table.rows)


def test_a_distilled_config_is_followed_to_its_stock_config():
    config = str(ROOT / 'configs/lgd/lgd_retinanet_r50_fpn_2x_coco.py')
    assert 'retinanet_r50_fpn_1x_coco' in stock_names(config)
    assert ZOO_ROW in rows_of(config)


def test_a_config_of_one_s_own_inherits_the_name_of_its_base(tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text("_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'")
    rows = rows_of(str(config))
    assert ['fcos_r50-caffe_fpn_gn-head_1x_coco', 'box AP', '36.6', "mmdet's model zoo"] in rows
    assert 'lgd_fcos_r50-caffe_fpn_gn-head_ms-2x_coco' in [row[0] for row in rows]


def test_a_detector_that_nobody_lists():
    config = str(ROOT / 'configs/demo/retinanet_r18-small_own-data.py')
    section = model_zoo_section(config)
    assert section.text.startswith('Neither')
    assert not section.tables


def test_without_a_stock_config_detector_and_backbone_count():
    rows = rows_of(str(ROOT / 'configs/sssd/sssd_retinanet_r50_fpn_own-data.py'))
    assert ZOO_ROW in rows
    assert PAPER_ROW in rows
    assert not any('retinanet_r18' in row[0] for row in rows)


def test_a_missing_config_is_named():
    with pytest.raises(ConfigError, match=r'nowhere\.py cannot be read as a config'):
        model_zoo_section('nowhere.py')
