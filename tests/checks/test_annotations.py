import json
import re

import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.annotations import check_annotations
from mmdet_sssd.checks.dry_run import warnings_listed


def coco(**changes) -> dict:
    return {
        'images': [{'id': 1, 'file_name': 'a.jpg', 'height': 8, 'width': 8}],
        'annotations': [
            {
                'id': 5,
                'image_id': 1,
                'category_id': 2,
                'bbox': [1, 1, 4, 4],
                'area': 16,
                'iscrowd': 0,
            }
        ],
        'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
        **changes,
    }


@pytest.fixture
def config(tmp_path):
    """A config whose files are all there."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'train.json').write_text(json.dumps(coco()))
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
            val_evaluator=dict(type='CocoMetric', ann_file=str(tmp_path / 'train.json')),
        )
    )


def test_a_good_config_passes(config):
    check_annotations(config)


def test_a_missing_annotation_file_is_named_with_its_key(config):
    config.train_dataloader.dataset.dataset.ann_file = 'missing.json'
    with pytest.raises(
        ConfigError,
        match=r'train_dataloader\.dataset\.dataset\.ann_file: there is no .*missing\.json',
    ):
        check_annotations(config)


def test_a_missing_image_folder_is_named_with_its_key(config):
    config.val_dataloader.dataset.data_prefix.img = 'pictures'
    with pytest.raises(
        ConfigError, match=r'val_dataloader\.dataset\.data_prefix\.img: there is no'
    ):
        check_annotations(config)


def test_a_missing_evaluator_file_is_named_with_its_key(config):
    config.val_evaluator.ann_file = 'nowhere.json'
    with pytest.raises(ConfigError, match=r'val_evaluator\.ann_file: there is no nowhere\.json'):
        check_annotations(config)


def test_class_names_without_a_category_are_named_with_the_categories(config):
    config.val_dataloader.dataset.metainfo.classes = ('lion', 'tiger')
    with pytest.raises(
        ConfigError, match=r'metainfo\.classes: none of lion, tiger is a category .* has: cat, dog'
    ):
        check_annotations(config)


@pytest.mark.parametrize(
    ('classes', 'labelled'),
    [
        (('dog', 'cat'), 'cat, dog'),
        (('lion', 'cat', 'dog'), 'cat, dog'),
        (('cat', 'lion', 'dog'), ''),
    ],
)
def test_names_that_would_belong_to_other_labels_are_refused(config, classes, labelled):
    """CocoDataset numbers categories as the file does: names would be swapped, silently."""
    config.val_dataloader.dataset.metainfo.classes = classes
    with pytest.raises(
        ConfigError,
        match=rf'val_dataloader\.dataset\.metainfo\.classes is {", ".join(classes)}, but labels 0 to 1 '
        rf'will be {labelled}',
    ):
        check_annotations(config)


@pytest.mark.parametrize('classes', [('cat',), ('dog',), ('cat', 'dog', 'lion')])
def test_names_of_a_part_of_the_categories_pass(config, classes):
    config.val_dataloader.dataset.metainfo.classes = classes
    check_annotations(config)


def test_a_single_name_without_a_comma_is_no_file(config):
    config.val_dataloader.dataset.metainfo.classes = 'cat'
    with pytest.raises(ConfigError, match=r"classes is 'cat', and there is no file of that name"):
        check_annotations(config)


def test_coco_s_own_classes_count_where_none_are_given(config, tmp_path):
    (tmp_path / 'train.json').write_text(
        json.dumps(coco(categories=[{'id': 1, 'name': 'Katze'}, {'id': 2, 'name': 'Hund'}]))
    )
    config.val_dataloader.dataset.pop('metainfo')
    config.pop('train_dataloader')
    with pytest.raises(ConfigError, match=r'person, bicycle.*80 names.* has: Katze, Hund'):
        check_annotations(config)


def test_a_category_that_the_file_does_not_define_is_named(config, tmp_path):
    content = coco()
    content['annotations'][0]['category_id'] = 7
    (tmp_path / 'train.json').write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r'annotation 5 of category_id 7, .* \[1, 2\]'):
        check_annotations(config)


def annotation(**changes) -> dict:
    return {**coco()['annotations'][0], **changes}


def annotation_without(key: str) -> dict:
    return {k: value for k, value in annotation().items() if k != key}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(images=[], annotations=[]), 'no images'),
        (dict(annotations=[]), 'no annotations'),
        (dict(annotations=[annotation_without('area')]), 'without area'),
        (dict(annotations=[annotation(bbox=['1', 1, 4, 4])]), 'annotation 5 with bbox'),
        (dict(annotations=[annotation(bbox=[1, 4])]), 'annotation 5 with bbox'),
        (dict(images=coco()['images'] * 2), '2 images with 1 ids'),
        (dict(annotations=[annotation(), annotation()]), '2 annotations with 1 ids'),
        (dict(annotations=[annotation(image_id='1')]), "no image .*'1' and others"),
    ],
)
def test_entries_that_mmdet_would_stumble_over_are_named(config, tmp_path, changes, message):
    config.train_dataloader.dataset.dataset.filter_cfg = dict(filter_empty_gt=True)
    (tmp_path / 'train.json').write_text(json.dumps(coco(**changes)))
    with pytest.raises(ConfigError, match=message):
        check_annotations(config)


def warnings_of(config) -> str:
    with warnings_listed() as warnings:
        check_annotations(config)
    return '\n'.join(warnings)


def test_boxes_of_another_format_are_reported(config, tmp_path):
    config.val_dataloader.dataset.ann_file = 'val.json'
    config.val_evaluator.ann_file = str(tmp_path / 'val.json')
    (tmp_path / 'val.json').write_text(json.dumps(coco(annotations=[])))
    assert warnings_of(config) == ''
    (tmp_path / 'train.json').write_text(
        json.dumps(coco(annotations=[annotation(bbox=[4, 4, 7, 8])]))
    )
    assert re.search(
        r'^1 of 1 boxes in .*train\.json leave.*\[4, 4, 7, 8\] .* 5\. ', warnings_of(config)
    )


def test_training_images_as_validation_images_are_reported(config):
    assert re.search(r'train\.json is both trained on and validated on', warnings_of(config))


def test_an_evaluator_with_other_images_is_refused(config, tmp_path):
    more = [*coco()['images'], {'id': 2, 'file_name': 'b.jpg', 'height': 8, 'width': 8}]
    (tmp_path / 'val.json').write_text(json.dumps(coco(images=more)))
    config.val_evaluator.ann_file = str(tmp_path / 'val.json')
    check_annotations(config)  # images that are not predicted do no harm
    (tmp_path / 'val.json').write_text(json.dumps(coco(images=more[1:], annotations=[])))
    with pytest.raises(
        ConfigError,
        match=r'^val_evaluator\.ann_file: .*val\.json has other images than .*train\.json',
    ):
        check_annotations(config)


def test_labels_that_coco_s_metric_cannot_read_are_named(config, tmp_path):
    lacking = annotation_without('iscrowd')
    (tmp_path / 'train.json').write_text(json.dumps(coco(annotations=[lacking])))
    with pytest.raises(
        ConfigError,
        match=r'^val_evaluator\.ann_file: .* 1 annotations without iscrowd',
    ):
        check_annotations(config)
    config.val_evaluator.ann_file = None  # then mmdet writes a file with it
    check_annotations(config)


@pytest.mark.parametrize(
    'shape', [None, [], [[]], [[1, 1, 4, 4]], [1, 1, 4, 1, 4, 4], {'counts': []}]
)
def test_masks_that_coco_s_metric_cannot_read_are_named(config, tmp_path, shape):
    """It would end the run after the first epoch."""
    good = [[1, 1, 4, 1, 4, 4]], {'size': [8, 8], 'counts': [64]}, {'size': [8, 8], 'counts': 'P2'}
    annotations = [annotation(id=i, segmentation=x) for i, x in enumerate((*good, shape))]
    (tmp_path / 'train.json').write_text(json.dumps(coco(annotations=annotations)))
    check_annotations(config)
    config.val_evaluator.metric = ['bbox', 'segm']
    with pytest.raises(ConfigError, match=r'^val_evaluator\.ann_file: .* annotation 3'):
        check_annotations(config)
    annotations.pop()
    (tmp_path / 'train.json').write_text(json.dumps(coco(annotations=annotations)))
    check_annotations(config)


def test_an_image_without_its_size_is_named(config, tmp_path):
    content = coco(images=[{'id': 1, 'file_name': 'a.jpg', 'height': 8}])
    (tmp_path / 'train.json').write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r'train\.json has 1 images without .*a\.jpg'):
        check_annotations(config)


@pytest.mark.parametrize('content', ['not json', '[]', '{"images": []}'])
def test_other_formats_are_refused(config, tmp_path, content):
    (tmp_path / 'train.json').write_text(content)
    with pytest.raises(ConfigError, match=r'train\.json .* is not a COCO annotation file'):
        check_annotations(config)


def test_unchecked_settings_pass(config, tmp_path):
    """Panoptic annotations, other storage, class names in a file, classes instead of their names."""
    panoptic = coco(annotations=[{'image_id': 1, 'segments_info': []}])
    (tmp_path / 'panoptic.json').write_text(json.dumps(panoptic))
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    dataset = config.val_dataloader.dataset
    for changes in (
        dict(type='CocoPanopticDataset', ann_file='panoptic.json'),
        dict(backend_args=dict(backend='petrel'), ann_file='elsewhere.json'),
        dict(metainfo=dict(classes=str(tmp_path / 'classes.txt'))),
        dict(type=CocoDataset),
    ):
        config.val_dataloader = dict(dataset=dict(dataset, **changes))
        check_annotations(config)
