"""What is recorded of dense heads: their logits, and the anchors that their losses count."""

from types import SimpleNamespace

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

from mmdet_sssd import ConfigError
from mmdet_sssd.models.dense_head import HeadRecord, extract_cls_scores

STOCK = f'{mmdet.__path__[0]}/.mim/configs'
SIZE = 128  # pixels a side of the batch; its images are lower and narrower
IMAGES = [(64, 128), (128, 64)]
BOXES = [
    [[10.0, 8.0, 50.0, 52.0], [60.0, 4.0, 120.0, 60.0]],
    [[4.0, 20.0, 44.0, 56.0]],
]
CONFIGS = {
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'atss': 'atss/atss_r50_fpn_1x_coco.py',
    'gfl': 'gfl/gfl_r50_fpn_1x_coco.py',
    'fsaf': 'fsaf/fsaf_r50_fpn_1x_coco.py',
    'reppoints': 'reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'vfnet': 'vfnet/vfnet_r50_fpn_1x_coco.py',
    'autoassign': 'autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    'tood': 'tood/tood_r50_fpn_1x_coco.py',
    'pisa': 'pisa/retinanet-r50_fpn_pisa_1x_coco.py',
    'yolox': 'yolox/yolox_nano_8xb8-300e_coco.py',
    'ga': 'guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py',
    'ssd': 'ssd/ssd300_coco.py',
}


def build(kind):
    """Build the head of one of mmdet's configs, for 3 classes."""
    model = Config.fromfile(f'{STOCK}/{CONFIGS[kind]}').model
    configs = {key: model.get(key) for key in ('train_cfg', 'test_cfg')}
    return MODELS.build(dict(model.bbox_head, num_classes=3, **configs))


def record(head):
    """What is recorded of a head in a step on random features, and the strides of its levels."""
    MessageHub.get_current_instance().update_info('epoch', 9)  # beyond TOOD's first epochs
    samples = []
    for shape, boxes in zip(IMAGES, BOXES, strict=True):
        meta = dict(pad_shape=shape, batch_input_shape=(SIZE, SIZE), scale_factor=1)
        sample, boxes = DetDataSample(metainfo=dict(img_shape=shape, **meta)), torch.tensor(boxes)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)))
        samples.append(sample)
    strides = [stride for stride, _ in head.prior_generator.strides]
    sides, channels = [-(-SIZE // x) for x in strides], getattr(head, 'in_channels', 256)
    feats = [torch.randn(2, channels, side, side) for side in sides]
    with HeadRecord(SimpleNamespace(bbox_head=head)) as found:
        head.loss(feats, samples)
    return found.outputs(feats), strides


def inside(shape, stride, image):
    """Which pixels of a level begin within one of the images, pixel by pixel."""
    height, width = IMAGES[image]
    return torch.tensor(
        [[y * stride < height and x * stride < width for x in range(shape)] for y in range(shape)]
    )


@pytest.mark.parametrize('kind', ['atss', 'gfl', 'fsaf', 'reppoints', 'tood'])
def test_anchors_in_the_padding_are_not_flagged(kind):
    found, strides = record(build(kind))
    for flags, stride in zip(found.anchor_flags(), strides, strict=True):
        assert flags.shape[-1] == 1
        for image in range(2):
            assert torch.equal(flags[image, ..., 0], inside(flags.shape[1], stride, image))


@pytest.mark.parametrize('kind', ['fcos', 'vfnet', 'autoassign'])
def test_heads_that_weigh_no_anchor_count_all(kind):
    assert record(build(kind))[0].anchor_flags() is None


@pytest.mark.parametrize('kind', ['retinanet', 'gfl', 'reppoints', 'tood'])
def test_logits_lie_as_the_loss_has_them(kind):
    """What is passed to the loss beside the weights are these logits, or their probabilities."""
    head, passed = build(kind), []
    head.loss_cls.register_forward_pre_hook(lambda _, args: passed.append(args[0]))
    found, _ = record(head)
    for logits, value in zip(found.cls_scores, passed, strict=True):
        flat = logits.reshape(-1, 3)
        torch.testing.assert_close(flat.sigmoid() if kind == 'tood' else flat, value)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_logits_of_tood_s_probabilities_are_finite(dtype):
    probabilities = torch.tensor([0.0, 0.5, 1.0], dtype=dtype).reshape(1, 3, 1, 1)
    (logits,) = extract_cls_scores(build('tood'), [[probabilities]])
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.flatten()[1] == 0


def test_a_loss_that_is_not_computed_level_by_level_is_refused():
    with pytest.raises(ConfigError, match='PISARetinaHead ignores cannot be told'):
        record(build('pisa'))[0].anchor_flags()


@pytest.mark.parametrize(
    ('kind', 'expected'), [('fcos', True), ('yolox', False), ('ga', False), ('ssd', False)]
)
def test_heads_whose_logits_can_be_compared(kind, expected):
    made = [[torch.zeros(1, 3 * 9, 4, 4)], []]
    assert (extract_cls_scores(build(kind), made) is not None) == expected
