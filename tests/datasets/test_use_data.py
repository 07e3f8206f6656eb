from mmdet.datasets import CocoDataset
from mmdet.visualization import get_palette

from mmdet_sssd.datasets import metainfo_of


def test_there_is_a_colour_for_every_class():
    for count in (80, 81):
        classes = [f'class {i}' for i in range(count)]
        metainfo = CocoDataset._load_metainfo(metainfo_of(classes))
        assert metainfo['classes'] == tuple(classes)
        assert len(get_palette(metainfo['palette'], count)) >= count
