import json

import pytest
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.annotations import check_annotations
from mmdet_sssd.checks.dry_run import warnings_listed

IMAGE = {'id': 1, 'file_name': 'a.jpg', 'height': 8, 'width': 8}
ANNOTATION = dict(id=5, image_id=1, category_id=2, bbox=[1, 1, 4, 4], area=16, iscrowd=0)


def coco(**changes) -> dict:
    categories = [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]
    return dict(images=[IMAGE], annotations=[ANNOTATION], categories=categories) | changes


def annotation(without=None, **changes) -> dict:
    return {k: x for k, x in (ANNOTATION | changes).items() if k != without}


@pytest.fixture
def write(tmp_path):
    """Write an annotation file; gives its path."""

    def write(content=None, name='train.json', **changes) -> str:
        text = content if isinstance(content, str) else json.dumps(content or coco(**changes))
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def config(tmp_path, write):
    """A config whose files are all there."""
    (tmp_path / 'images').mkdir()
    evaluator = dict(type='CocoMetric', ann_file=write())
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='train.json',
        data_prefix=dict(img='images'),
        metainfo=dict(classes=('cat', 'dog')),
    )
    return Config(
        dict(
            train_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset)),
            val_dataloader=dict(dataset=dataset),
            val_evaluator=evaluator,
        )
    )


def assert_refused(config, *named):
    """Check that the error names these."""
    with pytest.raises(ConfigError) as error:
        check_annotations(config)
    missing = [x for x in named if x not in str(error.value)]
    assert not missing, error.value


def warnings_of(config) -> list[str]:
    with warnings_listed() as warnings:
        check_annotations(config)
    return warnings


@pytest.mark.parametrize(
    ('key', 'value', 'named'),
    [
        ('train_dataloader.dataset.dataset.ann_file', 'missing.json', 'missing.json'),
        ('val_dataloader.dataset.data_prefix.img', 'pictures', 'pictures'),
        ('val_evaluator.ann_file', 'nowhere.json', 'nowhere.json'),
        ('val_dataloader.dataset.metainfo.classes', ('lion', 'tiger'), 'cat, dog'),
        ('val_dataloader.dataset.metainfo.classes', 'cat', 'comma'),
        # CocoDataset numbers categories as the file does: names would be swapped, silently
        ('val_dataloader.dataset.metainfo.classes', ('dog', 'cat'), 'cat, dog'),
        ('val_dataloader.dataset.metainfo.classes', ('cat', 'lion', 'dog'), 'cat, dog'),
    ],
)
def test_settings_that_disagree_with_the_files_are_refused(config, key, value, named):
    config.merge_from_dict({key: value})
    assert_refused(config, key, named)


@pytest.mark.parametrize(
    ('key', 'classes', 'named'),
    [
        ('val_dataloader.dataset', ('dog',), []),  # the file has no cat
        ('val_dataloader.dataset', ('cat',), ['leaves out dog', '(1) count as background']),
        ('train_dataloader.dataset.dataset', ('cat', 'dog', 'lion'), ['lion not among']),
    ],
)
def test_names_of_a_part_of_the_categories_pass(config, key, classes, named):
    """Objects of the others are reported: training would count them as background, silently."""
    config.merge_from_dict({f'{key}.metainfo.classes': classes})
    *others, images = warnings_of(config)
    assert 'both trained on and validated on' in images
    assert len(others) == bool(named)
    assert all(x in others[0] for x in named)


def test_coco_s_own_classes_count_where_none_are_given(config, write):
    write(categories=[{'id': 1, 'name': 'Katze'}, {'id': 2, 'name': 'Hund'}])
    config.val_dataloader.dataset.pop('metainfo')
    config.pop('train_dataloader')
    assert_refused(config, 'person, bicycle', 'Katze, Hund')


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        (dict(images=[], annotations=[]), 'no images'),
        (dict(images=[{'id': 1, 'file_name': 'a.jpg', 'height': 8}]), 'a.jpg'),
        (dict(images=[IMAGE | {'width': '8'}]), 'without height or width'),
        (dict(images=[{'id': 1, 'height': 8, 'width': 8}]), 'without file_name'),
        (dict(categories=[{'id': '2', 'name': 'cat'}]), "a category {'id': '2'"),
        (dict(categories=[{'id': 2, 'name': 7}]), "'name': 7"),
        (dict(images=[IMAGE] * 2), '2 images with 1 ids'),
        (dict(annotations=[]), 'no annotations'),
        (dict(annotations=[annotation('area')]), 'without area'),
        (dict(annotations=[annotation('iscrowd')]), 'without iscrowd'),
        (dict(annotations=[annotation(iscrowd=None)]), 'without iscrowd'),
        (dict(annotations=[annotation(area='16')]), "area '16'"),
        (dict(annotations=[annotation(id='a1')]), "the first has 'a1'"),
        (dict(annotations=[annotation(category_id=7)]), 'category_id 7'),
        (dict(annotations=[annotation(bbox=['1', 1, 4, 4])]), 'annotation 5'),
        (dict(annotations=[annotation(bbox=[1, 4])]), 'annotation 5'),
        (dict(annotations=[annotation(bbox=[float('nan'), 1, 4, 4])]), 'annotation 5'),
        (dict(annotations=[annotation(), annotation()]), '2 annotations with 1 ids'),
        (dict(annotations=[annotation(image_id='1')]), "'1' and others"),
    ],
)
def test_entries_that_mmdet_would_stumble_over_are_named(config, write, changes, named):
    config.train_dataloader.dataset.dataset.filter_cfg = dict(filter_empty_gt=True)
    write(**changes)
    assert_refused(config, 'ann_file', 'train.json', named)


@pytest.mark.parametrize(
    'content',
    [
        'not json',
        '[]',
        '{"images": []}',
        '{"images": [{}], "categories": []}',
        '{"images": ["a.jpg"], "categories": []}',
        '{"images": [], "categories": [{"id": 1}]}',
    ],
)
def test_other_formats_are_refused(config, write, content):
    write(content)
    assert_refused(config, 'ann_file', 'train.json', 'not a COCO')


def test_boxes_of_another_format_are_reported(config, write):
    config.val_dataloader.dataset.ann_file = 'val.json'
    config.val_evaluator.ann_file = write(name='val.json')
    assert warnings_of(config) == []
    write(annotations=[annotation(bbox=[4, 4, 7, 8])])
    (message,) = warnings_of(config)
    assert '[4, 4, 7, 8]' in message


@pytest.mark.parametrize(
    'changes', [dict(bbox=[-5, 1, 4, 4]), dict(bbox=[1, 1, 0.5, 4]), dict(area=0)]
)
def test_objects_that_mmdet_leaves_out_are_reported(config, write, changes):
    config.val_dataloader.dataset.ann_file = 'val.json'
    config.val_evaluator.ann_file = write(name='val.json')
    write(annotations=[annotation(), annotation(id=6, **changes)])
    assert any('1 of 2 objects' in x and "{'id': 6" in x for x in warnings_of(config))


def test_images_that_mmdet_leaves_out_are_reported(config, write):
    config.val_dataloader.dataset.ann_file = 'val.json'
    config.val_evaluator.ann_file = write(name='val.json')
    large = IMAGE | dict(id=2, width=32, height=32)
    write(images=[IMAGE, large])
    for loader in (config.train_dataloader.dataset, config.val_dataloader):
        loader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=32)
    config.val_dataloader.dataset.test_mode = True  # no image is left out
    (message,) = warnings_of(config)
    assert '1 of 2 images less than 32' in message
    write()
    assert_refused(config, 'train.json', '1 of 1 images less than 32')


def test_metrics_that_pycocotools_gets_wrong(config, write):
    """It takes id 0 for no match; mmdet names the AP of sorted classes in the file's order.

    A prediction of a class without category would end the evaluation with an IndexError.
    """
    write(annotations=[annotation(id=0)])
    assert any('id 0' in x for x in warnings_of(config))
    write(categories=[{'id': 2, 'name': 'cat'}, {'id': 1, 'name': 'dog'}])
    check_annotations(config)
    config.val_evaluator.classwise = True
    assert_refused(config, 'ids in the order 2, 1')
    config.val_dataloader.dataset.metainfo.classes = ('cat', 'dog', 'lion')
    assert_refused(config, 'val_evaluator.ann_file', 'no category lion')
    write(annotations=[])
    assert_refused(config, 'val_evaluator.ann_file', 'no annotations')
    config.val_dataloader.dataset.metainfo.classes = ('cat', 'dog')
    config.val_evaluator.update(format_only=True)
    check_annotations(config)


def test_training_images_as_validation_images_are_reported(config):
    (message,) = warnings_of(config)
    assert 'train.json' in message


def test_an_evaluator_with_other_images_is_refused(config, write):
    """Images that are not predicted do no harm."""
    more = [IMAGE, IMAGE | {'id': 2, 'file_name': 'b.jpg'}]
    config.val_evaluator.ann_file = write(name='val.json', images=more)
    check_annotations(config)
    write(name='val.json', images=more[1:], annotations=[annotation(image_id=2)])
    assert_refused(config, 'val_evaluator.ann_file', 'val.json', 'train.json')


@pytest.mark.parametrize(
    'shape', [None, [], [[]], [[1, 1, 4, 4]], [1, 1, 4, 1, 4, 4], {'counts': []}]
)
def test_masks_that_coco_s_metric_cannot_read_are_named(config, write, shape):
    """It would end the run after the first epoch."""
    good = [[1, 1, 4, 1, 4, 4]], {'size': [8, 8], 'counts': [64]}, {'size': [8, 8], 'counts': 'P2'}
    annotations = [annotation(id=i, segmentation=x) for i, x in enumerate((*good, shape), 1)]
    write(annotations=annotations)
    check_annotations(config)
    config.val_evaluator.metric = ['bbox', 'segm']
    config.val_evaluator.type = CocoMetric  # as in configs of the new style
    assert_refused(config, 'val_evaluator.ann_file', 'annotation 4')
    write(annotations=annotations[:3])
    check_annotations(config)


def test_what_no_check_is_for_passes(config, write, tmp_path):
    """Panoptic annotations, other storage, class names in a file, classes, a metric's own labels."""
    write(name='panoptic.json', annotations=[{'image_id': 1, 'segments_info': []}])
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    dataset = config.val_dataloader.dataset
    for changes in (
        dict(type='CocoPanopticDataset', ann_file='panoptic.json'),
        dict(backend_args=dict(backend='petrel'), ann_file='elsewhere.json'),
        dict(metainfo=dict(classes=str(tmp_path / 'classes.txt'))),
        dict(type=CocoDataset),
        dict(type='mmdet.datasets.CocoDataset', backend_args=dict(backend='local')),
    ):
        config.val_dataloader = dict(dataset=dict(dataset, **changes))
        check_annotations(config)
    write(annotations=[annotation('iscrowd')])
    config.val_evaluator.ann_file = None  # mmdet writes a file with it
    check_annotations(config)
