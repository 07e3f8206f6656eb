"""What is recorded of dense heads, against what their assigners ignore, restated."""

from types import SimpleNamespace

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
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


def build_head(kind):
    """The head of one of mmdet's configs, of 3 classes."""
    model = Config.fromfile(f'{STOCK}/{CONFIGS[kind]}').model
    torch.manual_seed(0)
    head = MODELS.build(
        dict(
            model.bbox_head,
            num_classes=3,
            train_cfg=model.get('train_cfg'),
            test_cfg=model.get('test_cfg'),
        )
    )
    head.init_weights()
    return head


def record(head):
    """Compute the head's loss on random features, recorded."""
    MessageHub.get_current_instance().update_info('epoch', 9)  # beyond TOOD's first epochs
    samples = []
    for shape, boxes in zip(IMAGES, BOXES, strict=True):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=shape, pad_shape=shape, batch_input_shape=(SIZE, SIZE), scale_factor=1
            )
        )
        boxes = torch.tensor(boxes)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)))
        samples.append(sample)
    channels = getattr(head, 'in_channels', 256)
    strides = [s[0] for s in head.prior_generator.strides]
    feats = [torch.randn(2, channels, -(-SIZE // s), -(-SIZE // s)) for s in strides]
    with HeadRecord(SimpleNamespace(bbox_head=head)) as found:
        head.loss(feats, samples)
    return found, strides


def inside(shape, stride, image):
    """Which pixels of a level begin within one of the images, pixel by pixel."""
    height, width = IMAGES[image]
    return torch.tensor(
        [[y * stride < height and x * stride < width for x in range(shape)] for y in range(shape)]
    )


@pytest.mark.parametrize('kind', ['atss', 'gfl', 'fsaf', 'reppoints', 'tood'])
def test_anchors_in_the_padding_are_not_flagged(kind):
    found, strides = record(build_head(kind))
    for flags, stride in zip(found.anchor_flags(), strides, strict=True):
        assert flags.shape[-1] == 1
        for image in range(2):
            assert torch.equal(flags[image, ..., 0], inside(flags.shape[1], stride, image))


def test_anchors_between_retinanet_s_thresholds_are_not_flagged():
    """IoU 0.4 to 0.5 is ignored, unless an object has no better anchor; anchors restated here."""
    head = build_head('retinanet')
    found, strides = record(head)
    levels = [
        torch.tensor(
            [
                [
                    [
                        (x * s - w / 2, y * s - h / 2, x * s + w / 2, y * s + h / 2)
                        for ratio in (0.5, 1.0, 2.0)
                        for octave in (0, 1, 2)
                        for area_root in [4 * s * 2 ** (octave / 3)]
                        for w, h in [(area_root / ratio**0.5, area_root * ratio**0.5)]
                    ]
                    for x in range(SIZE // s)
                ]
                for y in range(SIZE // s)
            ]
        )
        for s in strides
    ]
    num_ignored = 0
    for image, boxes in enumerate(BOXES):
        valid = [inside(x.shape[0], s, image) for x, s in zip(levels, strides, strict=True)]
        overlaps = [bbox_overlaps(x.reshape(-1, 4), torch.tensor(boxes)) for x in levels]
        overlaps = [
            x.unflatten(0, (n.shape[0], -1, 9)) for x, n in zip(overlaps, valid, strict=True)
        ]
        pairs = zip(overlaps, valid, strict=True)
        best = torch.stack([x[v].flatten(0, 1).amax(0) for x, v in pairs if v.any()]).amax(0)
        for flags, iou, is_valid in zip(found.anchor_flags(), overlaps, valid, strict=True):
            highest = iou.amax(-1)
            ignored = (highest >= 0.4) & (highest < 0.5) & ~(iou == best).any(-1)
            assert torch.equal(flags[image], is_valid[..., None] & ~ignored)
            num_ignored += int((ignored & is_valid[..., None]).sum())
    assert num_ignored > 10


@pytest.mark.parametrize('kind', ['fcos', 'vfnet', 'autoassign'])
def test_heads_that_weigh_no_anchor_count_all(kind):
    assert record(build_head(kind))[0].anchor_flags() is None


@pytest.mark.parametrize('kind', ['retinanet', 'gfl', 'reppoints', 'tood'])
def test_logits_lie_as_the_loss_has_them(kind):
    """What is passed to the loss beside the weights are these logits, or their probabilities."""
    head = build_head(kind)
    passed = []
    handle = head.loss_cls.register_forward_pre_hook(lambda _, args: passed.append(args[0]))
    found, _ = record(head)
    handle.remove()
    for logits, value in zip(found.cls_scores, passed, strict=True):
        flat = logits.reshape(-1, 3)
        torch.testing.assert_close(flat.sigmoid() if kind == 'tood' else flat, value)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_logits_of_tood_s_probabilities_are_finite(dtype):
    head = build_head('tood')
    probabilities = torch.tensor([0.0, 0.5, 1.0], dtype=dtype).reshape(1, 3, 1, 1)
    (logits,) = extract_cls_scores(head, [[probabilities]])
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.flatten()[1] == 0


def test_a_loss_that_is_not_computed_level_by_level_is_refused():
    with pytest.raises(ConfigError, match='PISARetinaHead ignores cannot be told'):
        record(build_head('pisa'))[0].anchor_flags()


def test_a_loss_of_some_anchors_is_refused():
    """YOLOX's logits are not compared, for just this reason; here as if they were."""
    found, strides = record(build_head('yolox'))
    assert found.cls_scores is None
    assert found.anchor_flags() is None
    found.cls_scores = [torch.zeros(2, SIZE // s, SIZE // s, 1, 3) for s in strides]
    with pytest.raises(ConfigError, match=r'^the anchors that a YOLOXHead ignores cannot be told'):
        found.anchor_flags()


@pytest.mark.parametrize(
    ('kind', 'expected'), [('fcos', True), ('yolox', False), ('ga', False), ('ssd', False)]
)
def test_heads_whose_logits_can_be_compared(kind, expected):
    made = [[torch.zeros(1, 3 * 9, 4, 4)], []]
    assert (extract_cls_scores(build_head(kind), made) is not None) == expected
