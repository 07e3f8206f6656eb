"""Data sets of which a part has labels, with the pipelines of stock detectors."""

from unittest import mock

from mmcv.transforms import BaseTransform
from mmdet.engine.hooks import PipelineSwitchHook, YOLOXModeSwitchHook
from mmdet.registry import DATASETS, TRANSFORMS

from mmdet_sssd.datasets import with_unlabelled
from mmdet_sssd.datasets.branches import BRANCHES, LABELLED, labelled_dataset

from ..small_runner import LABELS_FIRST, PACK, shapes_dataset

CROPS = dict(
    type='RandomChoice',
    transforms=[[dict(type='RandomCrop', crop_size=(size, size))] for size in (32, 40)],
)


def built(shapes, pipeline, mixed=(), repeat=1):
    """The four validation images with labels, and the eight training images as if they had none."""
    dataset = shapes_dataset(shapes, 'val', pipeline) | dict(test_mode=False)
    if mixed:
        dataset = dict(type='MultiImageMixDataset', dataset=dataset, pipeline=[*mixed])
    return DATASETS.build(with_unlabelled(dataset, 'annotations/train.json', 'train', repeat))


def runner_of(dataset):
    return mock.Mock(epoch=0, max_epochs=1, train_dataloader=mock.Mock(dataset=dataset))


def sizes(dataset):
    """Load all samples: the images' sizes by branch. Those with labels have objects, others none."""
    found = {branch: [] for branch in BRANCHES}
    for sample in (dataset[i] for i in range(len(dataset))):
        (branch,) = [x for x in BRANCHES if sample['inputs'][x] is not None]
        objects = len(sample['data_samples'][branch].gt_instances)
        assert (objects > 0) == (branch == LABELLED)
        found[branch].append(tuple(sample['inputs'][branch].shape[1:]))
    return found


def test_each_kind_gets_its_branch_and_the_other_no_labels(shapes):
    found = sizes(built(shapes, LABELS_FIRST, repeat=2))
    assert [len(x) for x in found.values()] == [2 * 4, 8]


def test_all_images_without_labels_are_used_if_some_with_labels_are_not(shapes):
    dataset = shapes_dataset(shapes, 'val', LABELS_FIRST) | dict(test_mode=False, indices=2)
    both = DATASETS.build(with_unlabelled(dataset, 'annotations/train.json', 'train'))
    assert [len(x) for x in both.datasets] == [2, 8]


def test_crops_keep_images_without_objects(shapes):
    pipeline = [*LABELS_FIRST[:-1], CROPS, PACK]
    for dataset in (built(shapes, pipeline), built(shapes, LABELS_FIRST[:-1], [CROPS, PACK])):
        assert len(sizes(dataset)['unsup']) == 8


@TRANSFORMS.register_module()
class SkipsEmpty(BaseTransform):
    """As ``Albu``, which the tests do not need."""

    skip_img_without_anno = True

    def transform(self, results):
        return None if self.skip_img_without_anno and not len(results['gt_bboxes']) else results


def test_no_step_throws_images_without_objects_away(shapes):
    pipeline = [*LABELS_FIRST[:-1], dict(type='SkipsEmpty'), PACK]
    assert len(sizes(built(shapes, pipeline))['unsup']) == 8


def test_a_switched_pipeline_is_that_of_both_kinds(shapes):
    dataset = built(shapes, LABELS_FIRST, repeat=2)
    crop = dict(type='RandomCrop', crop_size=(32, 32))
    hook = PipelineSwitchHook(0, [*LABELS_FIRST[:-1], crop, PACK])
    hook.before_train_epoch(runner_of(dataset))
    assert [set(x) for x in sizes(dataset).values()] == [{(32, 32)}] * 2


def test_steps_are_skipped_for_both_kinds(shapes):
    mosaic = dict(type='Mosaic', img_scale=(64, 64))
    dataset = built(shapes, LABELS_FIRST[:-1], [mosaic, PACK], repeat=2)
    assert [set(x) for x in sizes(dataset).values()] == [{(128, 128)}] * 2
    YOLOXModeSwitchHook().before_train_epoch(runner_of(dataset))
    assert [set(x) for x in sizes(dataset).values()] == [{(48, 96)}] * 2


def test_a_config_s_labelled_part_is_what_it_was(shapes):
    dataset = shapes_dataset(shapes, 'val', LABELS_FIRST)
    assert labelled_dataset(with_unlabelled(dataset, 'a.json')) == dataset
    repeated = dict(type='RepeatDataset', times=3, dataset=dataset)
    assert labelled_dataset(with_unlabelled(dataset, 'a.json', repeat=3)) == repeated
    assert labelled_dataset(repeated) == repeated
