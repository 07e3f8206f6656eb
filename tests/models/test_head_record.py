"""What is recorded of dense heads, against what their assigners ignore, restated."""

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
from mmdet_sssd.models import DistillTerm, Teacher
from mmdet_sssd.models.dense_head import extract_cls_scores

from ..distillers import TOY, build, losses_of
from ..toy_detector import ToyDetector

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


@MODELS.register_module()
class HeadDetector(ToyDetector):
    """Has a head on random features."""

    def __init__(self, head, **kwargs):
        super().__init__(**kwargs)
        self.bbox_head = MODELS.build(head)
        self.strides = [s[0] for s in self.bbox_head.prior_generator.strides]

    def extract_feat(self, batch_inputs):
        batch, _, size, _ = batch_inputs.shape
        channels = getattr(self.bbox_head, 'in_channels', 256)
        return [torch.randn(batch, channels, -(-size // s), -(-size // s)) for s in self.strides]

    def loss(self, batch_inputs, batch_data_samples):
        return self.bbox_head.loss(self.extract_feat(batch_inputs), batch_data_samples)


@MODELS.register_module()
class EchoTeacher(Teacher):
    def __init__(self, student):
        super().__init__()

    def forward(self, student, outputs, batch_inputs, batch_data_samples):
        return outputs.detach()


@MODELS.register_module()
class KeepingTerm(DistillTerm):
    """Keeps what it gets of the student."""

    needs_head = True

    def __init__(self, student, teacher):
        super().__init__()

    def forward(self, student, teacher, batch_inputs, batch_data_samples):
        self.seen = student
        return dict(loss=student.feats[0].sum() * 0)


def head_config(kind):
    """The head of one of mmdet's configs, of 3 classes."""
    model = Config.fromfile(f'{STOCK}/{CONFIGS[kind]}').model
    configs = {key: model.get(key) for key in ('train_cfg', 'test_cfg')}
    return dict(model.bbox_head, num_classes=3, **configs)


def distiller(kind):
    return build(
        {**TOY, 'type': 'HeadDetector', 'head': head_config(kind)},
        type='Distiller',
        teachers=dict(echo=dict(type='EchoTeacher')),
        terms=dict(keeping=dict(type='KeepingTerm')),
    )


def record(model):
    """What a term gets of the student in a step, and the strides of its levels."""
    MessageHub.get_current_instance().update_info('epoch', 9)  # beyond TOOD's first epochs
    samples = []
    for shape, boxes in zip(IMAGES, BOXES, strict=True):
        meta = dict(pad_shape=shape, batch_input_shape=(SIZE, SIZE), scale_factor=1)
        sample, boxes = DetDataSample(metainfo=dict(img_shape=shape, **meta)), torch.tensor(boxes)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)))
        samples.append(sample)
    losses_of(model, dict(inputs=torch.zeros(2, 3, SIZE, SIZE), data_samples=samples))
    return model.terms['keeping'].seen, model.student.strides


def inside(shape, stride, image):
    """Which pixels of a level begin within one of the images, pixel by pixel."""
    height, width = IMAGES[image]
    return torch.tensor(
        [[y * stride < height and x * stride < width for x in range(shape)] for y in range(shape)]
    )


@pytest.mark.parametrize('kind', ['atss', 'gfl', 'fsaf', 'reppoints', 'tood'])
def test_anchors_in_the_padding_are_not_flagged(kind):
    found, strides = record(distiller(kind))
    for flags, stride in zip(found.anchor_flags(), strides, strict=True):
        assert flags.shape[-1] == 1
        for image in range(2):
            assert torch.equal(flags[image, ..., 0], inside(flags.shape[1], stride, image))


def retinanet_s_anchors(stride):
    """The nine boxes around each pixel of a level."""
    sides = [4 * stride * 2 ** (octave / 3) for octave in range(3)]
    sizes = [(x / ratio**0.5, x * ratio**0.5) for ratio in (0.5, 1.0, 2.0) for x in sides]
    places = range(0, SIZE, stride)
    boxes = [
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        for y in places
        for x in places
        for w, h in sizes
    ]
    return torch.tensor(boxes).view(len(places), len(places), 9, 4)


def test_anchors_between_retinanet_s_thresholds_are_not_flagged():
    """IoU 0.4 to 0.5 is ignored, unless an object has no better anchor; anchors restated here."""
    found, strides = record(distiller('retinanet'))
    levels = [retinanet_s_anchors(stride) for stride in strides]
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
    assert record(distiller(kind))[0].anchor_flags() is None


@pytest.mark.parametrize('kind', ['retinanet', 'gfl', 'reppoints', 'tood'])
def test_logits_lie_as_the_loss_has_them(kind):
    """What is passed to the loss beside the weights are these logits, or their probabilities."""
    model, passed = distiller(kind), []
    loss = model.student.bbox_head.loss_cls
    loss.register_forward_pre_hook(lambda _, args: passed.append(args[0]))
    found, _ = record(model)
    for logits, value in zip(found.cls_scores, passed, strict=True):
        flat = logits.reshape(-1, 3)
        torch.testing.assert_close(flat.sigmoid() if kind == 'tood' else flat, value)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_logits_of_tood_s_probabilities_are_finite(dtype):
    head = distiller('tood').student.bbox_head
    probabilities = torch.tensor([0.0, 0.5, 1.0], dtype=dtype).reshape(1, 3, 1, 1)
    (logits,) = extract_cls_scores(head, [[probabilities]])
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.flatten()[1] == 0


def test_a_loss_that_is_not_computed_level_by_level_is_refused():
    with pytest.raises(ConfigError, match='PISARetinaHead ignores cannot be told'):
        record(distiller('pisa'))[0].anchor_flags()


@pytest.mark.parametrize(
    ('kind', 'expected'), [('fcos', True), ('yolox', False), ('ga', False), ('ssd', False)]
)
def test_heads_whose_logits_can_be_compared(kind, expected):
    made = [[torch.zeros(1, 3 * 9, 4, 4)], []]
    assert (extract_cls_scores(MODELS.build(head_config(kind)), made) is not None) == expected
