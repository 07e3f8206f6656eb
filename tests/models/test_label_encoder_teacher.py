"""The implicit teacher against its restatement, on any labels, and in mixed precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData

from mmdet_sssd import ConfigError
from mmdet_sssd.models import ChannelAdapter, FeatureAdapter, LabelEncoderTeacher

from ..distillers import assert_equal
from .teacher_restated import teacher_features_of_image

IMAGE = (40, 56)  # padded batch size
CONTENT = [(40, 50), (33, 56), (40, 56), (40, 56)]
INPUTS = torch.zeros(len(CONTENT), 3, *IMAGE)
LEVELS = [(5, 7), (3, 4), (1, 1)]  # strides 8, about 16, and everything in a pixel


def sample(boxes, labels, content=IMAGE, masks=None) -> DetDataSample:
    data_sample = DetDataSample(metainfo=dict(img_shape=content))
    data_sample.gt_instances = InstanceData(
        bboxes=torch.as_tensor(boxes, dtype=torch.float64).view(-1, 4),
        labels=torch.as_tensor(labels).long(),
    )
    if masks is not None:
        data_sample.gt_instances.masks = masks
    return data_sample


def batch_of_boxes() -> list[DetDataSample]:
    return [
        sample([[3, 4, 30, 21], [10, 2, 55.5, 39], [-9, 30, 12, 80]], [0, 2, 1], CONTENT[0]),
        sample([[20, 20, 20, 30], [1, 1, 4, 3]], [1, 1], CONTENT[1]),  # no width; tiny
        sample([[17.3, 5.1, 40.2, 33.7]], [2], CONTENT[2]),
        sample([], [], CONTENT[3]),
    ]


def batch_of_masks() -> list[DetDataSample]:
    rng = np.random.default_rng(0)
    batch = []
    for data_sample, (height, width) in zip(batch_of_boxes(), CONTENT, strict=True):
        masks = np.zeros((len(data_sample.gt_instances), height, width), np.uint8)
        for mask, box in zip(masks, data_sample.gt_instances.bboxes.int().tolist(), strict=True):
            x1, y1, x2, y2 = (max(v, 0) for v in box)
            mask[y1 : y2 + 1, x1 : x2 + 1] = rng.random(mask[y1 : y2 + 1, x1 : x2 + 1].shape) < 0.7
        data_sample.gt_instances.masks = BitmapMasks(masks, height, width)
        batch.append(data_sample)
    return batch


def features(channels=16, dtype=torch.float64, levels=LEVELS) -> list[torch.Tensor]:
    return [torch.randn(len(CONTENT), channels, *size, dtype=dtype) for size in levels]


def make_teacher(channels=16, dtype=torch.float64, **kwargs) -> LabelEncoderTeacher:
    teacher = LabelEncoderTeacher(in_channels=channels, num_classes=3, **kwargs)
    for name, parameter in teacher.named_parameters():
        if 'bias' in name:  # MultiheadAttention's are zero at first, which would hide a mistake
            torch.nn.init.normal_(parameter, std=0.1)
    return teacher.to(dtype)


def assert_restated(teacher, feats, batch, crops=None):
    with torch.no_grad():
        per_image = [
            teacher_features_of_image(
                teacher,
                [x[b] for x in feats],
                s.gt_instances.bboxes,
                s.gt_instances.labels,
                IMAGE,
                s.img_shape,
                torch.from_numpy(s.gt_instances.masks.masks) if crops else None,
                crops[b] if crops else None,
            )
            for b, s in enumerate(batch)
        ]
        found = teacher(feats, INPUTS, batch)
    expected = tuple(torch.stack(level) for level in zip(*per_image, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('lgd', [True, False])
@pytest.mark.parametrize('add_context_box', [True, False])
def test_teacher_equals_the_restatement_with_boxes(add_context_box, lgd):
    settings = dict(soft_regions=False, class_vectors=False) if lgd else {}
    teacher = make_teacher(add_context_box=add_context_box, **settings)
    assert_restated(teacher, features(), batch_of_boxes())


@pytest.mark.parametrize(
    ('add_context_box', 'soft_regions', 'levels'),
    [
        (True, True, LEVELS),
        (True, False, LEVELS),
        (False, False, LEVELS),
        (False, True, [(10, 14), (5, 7), (5, 2)]),  # the finest nests in the image
        (False, True, [(1, 2), (8, 12), (5, 7)]),  # the finest is not the first
        (False, True, [(45, 60), (40, 56)]),  # finer than the image, and as fine
    ],
)
def test_teacher_equals_the_restatement_with_masks(add_context_box, soft_regions, levels):
    settings = dict(add_context_box=add_context_box, soft_regions=soft_regions)
    teacher, batch = make_teacher(use_masks=True, **settings), batch_of_masks()
    crops = []
    for s in batch:  # mmdet's own mask cropping
        boxes = s.gt_instances.bboxes.float().clamp(min=0)
        boxes = boxes.minimum(torch.tensor([IMAGE[1] - 1, IMAGE[0] - 1] * 2))
        cropped = s.gt_instances.masks.crop_and_resize(boxes, (7, 7), torch.arange(len(boxes)))
        crops.append(torch.from_numpy(cropped.masks.reshape(len(boxes), 49).astype(np.uint8)))
    assert_restated(teacher, features(levels=levels), batch, crops)


def test_features_tell_the_classes():
    """After a hundred steps a linear head reads each object's class off the map; LGD's cannot yet."""
    assert class_accuracy(class_vectors=True) > 0.9 > 0.6 > class_accuracy(class_vectors=False)


def class_accuracy(class_vectors: bool, num_classes: int = 8) -> float:
    torch.manual_seed(0)
    teacher = LabelEncoderTeacher(16, num_classes, class_vectors=class_vectors)
    head = torch.nn.Conv2d(16, num_classes, 1)
    optimizer = torch.optim.AdamW([*teacher.parameters(), *head.parameters()], 3e-3)
    corners = torch.tensor([[8 * x, 8 * y] for y in range(4) for x in range(4)])  # disjoint objects
    hits = []
    for _ in range(100):
        labels = torch.randint(num_classes, (4, 16))
        batch = [sample(torch.cat([corners, corners + 8], 1).tolist(), x, (32, 32)) for x in labels]
        (feats,) = teacher([torch.randn(4, 16, 8, 8)], torch.zeros(4, 3, 32, 32), batch)
        scores = F.avg_pool2d(head(feats), 2).flatten(2)  # an object covers 2×2 pixels
        hits.append((scores.argmax(1) == labels).float().mean().item())
        optimizer.zero_grad()
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
    return sum(hits[-10:]) / 10


def test_polygon_masks_are_read():
    square = np.array([8.0, 8, 30, 8, 30, 30, 8, 30])
    polygons = PolygonMasks([[square]], *IMAGE)
    bitmaps = BitmapMasks(polygons.to_ndarray(), *IMAGE)
    teacher, feats = make_teacher(use_masks=True), features()
    ours, expected = (
        teacher(feats, INPUTS, [sample([[8, 8, 30, 30]], [0], masks=masks)] * len(CONTENT))
        for masks in (polygons, bitmaps)
    )
    assert_equal(ours, expected)


def test_missing_masks_are_named():
    with pytest.raises(ConfigError, match=r'^use_masks is True.*with_mask=True'):
        make_teacher(use_masks=True)(features(), INPUTS, batch_of_boxes())


@pytest.mark.parametrize(
    ('in_channels', 'width'),
    [(16, 16), ([16, 16], 16), (12, 256), ([16, 32], 256), (1024, 256), ([512] * 3, 512)],
)
def test_levels_are_worked_on_in_one_width(in_channels, width):
    teacher, adapter = LabelEncoderTeacher(in_channels, num_classes=2), FeatureAdapter(in_channels)
    of_adapter = 12 if in_channels == 12 else width  # attention needs a multiple of 8
    for module, convs, expected in (
        (teacher, teacher.knowledge_mapper.refine, width),
        (adapter, adapter.convs, of_adapter),
    ):
        assert convs[0].in_channels == expected
        projected = {c for c in np.atleast_1d(in_channels).tolist() if c != expected}
        assert {int(c) for c in module.projection.inward} == projected


def test_a_projected_teacher_is_a_plain_one_between_two_projections():
    channels = [16, 24]
    teacher = LabelEncoderTeacher(channels, num_classes=3).double()
    plain = LabelEncoderTeacher(256, num_classes=3).double()
    weights = {k: v for k, v in teacher.state_dict().items() if not k.startswith('projection')}
    plain.load_state_dict(weights)
    inputs, batch = INPUTS, batch_of_boxes()
    feats = [features(c)[i] for i, c in enumerate(channels)]
    into, back = teacher.projection.inward, teacher.projection.outward
    wide = [into[str(c)](x) for c, x in zip(channels, feats, strict=True)]
    expected = plain(wide, inputs, batch)
    for c, x, y in zip(channels, teacher(feats, inputs, batch), expected, strict=True):
        torch.testing.assert_close(x, back[str(c)](y))


def test_more_classes_than_256_are_embedded_and_told_apart():
    assert LabelEncoderTeacher(16, num_classes=256).class_code.embedding is None
    teacher = LabelEncoderTeacher(16, num_classes=1203)
    assert sum(p.numel() for p in teacher.parameters()) < 5e6
    inputs, feats = torch.zeros(1, 3, *IMAGE), [torch.randn(1, 16, 5, 7)]

    def made(label):
        return teacher(feats, inputs, [sample([[3, 4, 30, 21]], [label])])[0]

    assert torch.equal(made(7), made(7))
    assert not torch.allclose(made(7), made(1199), atol=1e-3)
    made(1199).square().sum().backward()
    touched = teacher.class_code.embedding.weight.grad.abs().sum(1).nonzero().flatten()
    assert touched.tolist() == [1199]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_huge_regions_are_averaged_in_float32_under_autocast(dtype):
    """1 / area of a region of 2^18 pixels is 3.8e-6: a few steps of float16 above zero."""
    encoder = LabelEncoderTeacher(8, num_classes=3).appearance_encoder
    x, regions = torch.randn(1, 8, 512, 512), torch.ones(1, 1, 512, 512)
    regions[..., 0] = 0.01
    with torch.no_grad(), torch.autocast('cpu', dtype=dtype):
        features = torch.relu(encoder.norm(encoder.conv(x))).double()
        appearance = encoder(x, regions)
    weights = regions.double() / regions.double().sum()
    expected = torch.einsum('bnhw,bchw->bnc', weights, features)
    assert appearance.dtype == torch.float32
    torch.testing.assert_close(appearance.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('use_masks', [False, True])
def test_boxes_and_regions_are_of_float32_whatever_the_features(dtype, use_masks):
    teacher = make_teacher(dtype=torch.float32, use_masks=use_masks)
    batch, rough = batch_of_masks(), [x.to(dtype) for x in features(dtype=torch.float32)]
    with torch.no_grad(), torch.autocast('cpu', dtype):
        found = teacher(rough, INPUTS, batch)
        expected = teacher([x.float() for x in rough], INPUTS, batch)
    assert_equal(found, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_features_at_the_end_of_float16_stay_finite(dtype):
    teacher = make_teacher(channels=10, dtype=torch.float32)  # projected to a width of 256
    adapters = [FeatureAdapter(16), FeatureAdapter([16, 24]), ChannelAdapter([16], [24])]
    for parameter in torch.nn.ModuleList(adapters).parameters():  # so that each sum is too large
        parameter.data *= 4
    feats = [6e4 * x.sign() for x in features(10, torch.float32)]
    with torch.autocast('cpu', dtype):
        made = [*teacher([x.to(dtype) for x in feats], INPUTS, batch_of_boxes())]
        for adapter in adapters:
            (x,) = adapter([torch.full((1, 16, 4, 4), 6e4, dtype=dtype)])
            made.append(F.layer_norm(x, x.shape[2:]))  # as a term normalises
    assert all(x.isfinite().all() for x in made)
    sum(x.float().square().mean() for x in made).backward()
    modules = [teacher, *(adapters[index] for index in (0, 2))]
    grads = [x.grad for module in modules for x in module.parameters()]
    assert all(x.isfinite().all() for x in grads)
