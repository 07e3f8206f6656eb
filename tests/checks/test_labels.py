import json
from types import SimpleNamespace

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, MODELS
from mmengine.structures import InstanceData

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.dry_run import warnings_listed
from mmdet_sssd.checks.labels import check_data_sets

from ..distillers import ADL, SSIM, TOY, pretrained
from ..stock_detectors import stock_config
from ..toy_detector import TOY_MODEL, ToyDataset, ToyHead, toy_runner


def coco_dataset(folder, labels, classes, **kwargs):
    """A data set with an object of each label on an image of its own; None is an image without."""
    box = dict(bbox=[1, 1, 9, 9], area=81, iscrowd=0)
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=32, width=32) for i in range(len(labels))],
        annotations=[
            dict(box, id=i, image_id=i, category_id=label)
            for i, label in enumerate(labels)
            if label is not None
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes)],
    )
    folder.mkdir(exist_ok=True)
    (folder / 'train.json').write_text(json.dumps(content))
    return dict(
        type='CocoDataset',
        ann_file=str(folder / 'train.json'),
        metainfo=dict(classes=classes),
        data_prefix=dict(img=''),
        pipeline=[],
        serialize_data=False,  # which takes a second to collect garbage
        **kwargs,
    )


def check(training, num_classes, validation=None):
    """Check built data sets against a detector, as a run does."""
    model = MODELS.build(TOY)
    model.bbox_head.num_classes = num_classes
    loader = SimpleNamespace(dataset=validation)
    evaluator = SimpleNamespace(metrics=[CocoMetric(ann_file=None, metric='bbox')])
    check_data_sets(
        SimpleNamespace(
            model=model,
            train_dataloader=SimpleNamespace(dataset=training),
            val_loop=validation and SimpleNamespace(dataloader=loader, evaluator=evaluator),
        )
    )


def test_more_classes_than_the_data_set_names_are_pointed_out(tmp_path):
    dataset = DATASETS.build(coco_dataset(tmp_path, [0, 1], ('a', 'b')))
    with warnings_listed() as warnings:
        check(dataset, 2)
        check(dataset, None)  # its heads do not say
        assert warnings == []
        check(dataset, 3)
    assert len(warnings) == 1


def test_a_mask_that_the_pipeline_loads_is_missing(tmp_path):
    """It would end the run with a KeyError in the first epoch."""
    cfg = coco_dataset(tmp_path, [0, 1], ('a', 'b'))
    content = json.loads((tmp_path / 'train.json').read_text())
    content['annotations'][0]['segmentation'] = [[1, 1, 9, 1, 9, 9]]
    (tmp_path / 'train.json').write_text(json.dumps(content))
    load = dict(type='LoadAnnotations')
    check(DATASETS.build(cfg | dict(pipeline=[load])), 2)
    with pytest.raises(ConfigError, match=r'1\.jpg'):
        check(DATASETS.build(cfg | dict(pipeline=[load | dict(with_mask=True)])), 2)


@pytest.mark.parametrize('kind', ['semi', 'logits', 'features'])
def test_a_label_means_the_same_class_to_a_teacher(tmp_path, kind):
    terms = dict(semi={}, logits=dict(x=ADL), features=dict(x=SSIM))[kind]
    model = MODELS.build(
        dict(
            type='SemiDistiller' if kind == 'semi' else 'Distiller',
            student=stock_config('retinanet'),
            teachers=dict(large=pretrained(stock_config('retinanet'))),
            terms=terms,
        )
    )
    training = DATASETS.build(coco_dataset(tmp_path, [0, 1, 2], tuple('abc')))
    runner = SimpleNamespace(
        model=model, train_dataloader=SimpleNamespace(dataset=training), val_loop=None
    )
    found = []
    for classes in (None, 'abc', 'abd', 'bac'):
        model.teachers['large'].classes = classes
        with warnings_listed() as warnings:
            try:
                check_data_sets(runner)
            except ConfigError as error:
                warnings.append(str(error))
        found.append(warnings)
    if kind == 'features':
        assert found == [[]] * 4
    else:
        assert found[:2] == [[], []]
        assert found[2][0].endswith('a, b, d: check that they mean the same.')
        assert found[3][0].endswith('give a teacher that was trained with the same order')


def test_a_label_means_the_same_class_in_training_and_validation(tmp_path):
    """A subset of the classes is accepted; another order would give wrong metrics without a word."""
    training, same, swapped = (
        DATASETS.build(coco_dataset(tmp_path / name, [0, 1], tuple(classes)))
        for name, classes in dict(train='abc', same='ab', swapped='bac').items()
    )
    check(training, 2, same)
    with pytest.raises(ConfigError, match=r'label 0 is a in .*train\.json, but b in .*swapped'):
        check(training, 2, swapped)


def run_with(tmp_path, dataset, **settings):
    """The check comes before the first iteration, which data sets without images would fail."""
    runner = toy_runner(tmp_path, hooks=[dict(type='CheckDatasetHook')], **settings)
    runner._train_dataloader['dataset'] = dataset
    runner.train()


@pytest.mark.parametrize('wrapped', [True, False])
def test_a_label_outside_the_student_s_classes_is_found(tmp_path, wrapped):
    dataset = coco_dataset(tmp_path, [0, 1, 2, 0], ('a', 'b', 'c'))
    if wrapped:
        dataset = dict(type='RepeatDataset', times=2, dataset=DATASETS.build(dataset))
    message = (
        r'train\.json: .*2\.jpg .* label 2, but the model has 2 classes .*; the data set names 3'
    )
    with pytest.raises(ConfigError, match=message):
        run_with(tmp_path, dataset)


def test_a_data_set_without_objects_is_refused(tmp_path):
    kept = dict(filter_empty_gt=False)
    dataset = coco_dataset(tmp_path, [None, None], ('a', 'b'), filter_cfg=kept)
    with pytest.raises(
        ConfigError, match=r'no labelled object in any of its 2 images .*train\.json'
    ):
        run_with(tmp_path, dataset)


def test_a_teacher_s_classes_serve_where_the_student_s_heads_name_none(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyHead, 'num_classes', None)
    dataset = coco_dataset(tmp_path, [0, 2], ('a', 'b', 'c'))
    with pytest.raises(ConfigError, match='label 2, but the model has 2 classes'):
        run_with(tmp_path, dataset, model={**TOY_MODEL, 'teacher': dict(num_classes=2)})


class ThinBoxes(ToyDataset):
    """Every third image has a box that is half a pixel wide."""

    def __getitem__(self, index):
        found = super().__getitem__(index)
        sample = found['data_samples']
        sample.set_metainfo(dict(img_path=f'{index}.jpg'))
        if index % 3 == 0:
            thin = dict(bboxes=torch.tensor([[4.0, 4, 4.5, 20]]), labels=torch.tensor([0]))
            sample.gt_instances = InstanceData.cat([sample.gt_instances, InstanceData(**thin)])
        return found


def test_boxes_too_thin_to_train_on_are_told_of_once_and_counted_at_the_end(tmp_path):
    run_with(tmp_path, ThinBoxes(), epochs=2)
    (log,) = tmp_path.glob('*/*.log')
    warnings = [x for x in log.read_text().splitlines() if 'labelled boxes' in x]
    assert len(warnings) == 2
    assert 'of the 3 labelled boxes of a batch' in warnings[0]
    assert any(f'{index}.jpg' in warnings[0] for index in (0, 3, 6, 9))
    assert '8 labelled boxes' in warnings[1]  # 4 in each epoch
