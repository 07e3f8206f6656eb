import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData
from torch.nn.utils.rnn import pad_sequence

from mmdet_sssd import ConfigError
from mmdet_sssd.models import ChannelAdapter, FeatureAdapter, LabelEncoderTeacher
from mmdet_sssd.models.adapters import instance_norm
from mmdet_sssd.models.label_encoder_teacher import (
    AppearanceEncoder,
    KnowledgeMapper,
    LabelledObjects,
    Regions,
)

from .teacher_restated import teacher_features_of_image

IMAGE = (40, 56)  # padded batch size
CONTENT = [(40, 50), (33, 56), (40, 56)]
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


def features(batch: int, channels: int = 16, dtype=torch.float64) -> list[torch.Tensor]:
    return [torch.randn(batch, channels, *size, dtype=dtype) for size in LEVELS]


def make_teacher(channels: int = 16, dtype=torch.float64, **kwargs) -> LabelEncoderTeacher:
    teacher = LabelEncoderTeacher(in_channels=channels, num_classes=3, **kwargs)
    for name, parameter in teacher.named_parameters():
        if 'bias' in name:  # MultiheadAttention's are zero at first, which would hide a mistake
            torch.nn.init.normal_(parameter, std=0.1)
    return teacher.to(dtype)


def restate(teacher, feats, batch, crops=None):
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
    return [torch.stack(level) for level in zip(*per_image, strict=True)]


@pytest.mark.parametrize('lgd', [True, False])
@pytest.mark.parametrize('add_context_box', [True, False])
def test_teacher_equals_the_restatement_with_boxes(add_context_box, lgd):
    settings = dict(soft_regions=False, class_vectors=False) if lgd else {}
    teacher = make_teacher(add_context_box=add_context_box, **settings)
    feats, batch = features(3), batch_of_boxes()
    actual = teacher(feats, torch.zeros(3, 3, *IMAGE), batch)
    with torch.no_grad():
        expected = restate(teacher, feats, batch)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('soft_regions', [True, False])
@pytest.mark.parametrize('add_context_box', [True, False])
def test_teacher_equals_the_restatement_with_masks(add_context_box, soft_regions):
    teacher = make_teacher(
        add_context_box=add_context_box, use_masks=True, soft_regions=soft_regions
    )
    feats, batch = features(3), batch_of_masks()
    crops = []
    for s in batch:  # mmdet's own mask cropping
        boxes = s.gt_instances.bboxes.float().clamp(min=0)
        boxes = boxes.minimum(torch.tensor([IMAGE[1] - 1, IMAGE[0] - 1] * 2))
        cropped = s.gt_instances.masks.crop_and_resize(boxes, (7, 7), torch.arange(len(boxes)))
        crops.append(torch.from_numpy(cropped.masks.reshape(len(boxes), 49).astype(np.uint8)))
    actual = teacher(feats, torch.zeros(3, 3, *IMAGE), batch)
    with torch.no_grad():
        expected = restate(teacher, feats, batch, crops)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_the_teacher_s_features_tell_the_classes():
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


@pytest.mark.parametrize('use_masks', [True, False])
def test_soft_regions_lose_nothing_of_an_object(use_masks):
    """On every level a region adds up to the object's area; binary ones miss the small object."""
    objects = {
        soft: LabelledObjects(
            torch.zeros(3, 3, *IMAGE), batch_of_masks(), use_masks, soft, torch.float64
        )
        for soft in (True, False)
    }
    boxes = objects[True].boxes[:, 1:]
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    if use_masks:
        areas = pad_sequence(
            [torch.from_numpy(x).sum((1, 2)).to(boxes) for x in objects[True].masks], True
        )
    sizes = [(10, 14), (5, 7), (1, 1)]
    for (h, w), *both in zip(
        sizes, *(objects[x].regions(sizes) for x in (True, False)), strict=True
    ):
        pixel = IMAGE[0] / h * IMAGE[1] / w
        soft, binary = (x.maps[:, 1:] for x in both)
        torch.testing.assert_close(soft.sum((-1, -2)) * pixel, areas)
        assert set(binary.unique().tolist()) <= {0, 1}
        torch.testing.assert_close(soft, soft.clamp(0, 1))
    assert not objects[False].regions([(5, 7)])[0].maps[1, 2].any()


@pytest.mark.parametrize(
    'levels',
    [
        [(8, 12), (4, 6), (2, 3), (1, 1)],  # they nest
        [(8, 12), (4, 6), (3, 5), (1, 2)],
        [(1, 2), (8, 12), (5, 7)],
        [(70, 100), (64, 96)],  # finer than the image, and as fine
    ],
)
def test_soft_mask_regions_are_averages_over_the_pixels_of_the_finest_level(levels):
    rng = np.random.default_rng(0)
    sizes = [(64, 96), (50, 77), (64, 60)]
    masks = [rng.integers(0, 2, (n, *size), np.uint8) for n, size in enumerate(sizes)]
    batch = [
        sample([[1, 1, 30, 30]] * len(x), [0] * len(x), (*size, 3), BitmapMasks(x, *size))
        for x, size in zip(masks, sizes, strict=True)
    ]
    objects = LabelledObjects(torch.zeros(3, 3, 64, 96), batch, True, True)
    for level, found in zip(levels, objects.regions(levels), strict=True):
        context, regions = found.maps[:, :1], found.maps[:, 1:]
        assert regions.dtype == torch.float32
        for b, (height, width) in enumerate(sizes):
            padded = torch.zeros(len(masks[b]) + 1, 64, 96)
            padded[:-1, :height, :width] = torch.from_numpy(masks[b])
            padded[-1, :height, :width] = 1
            expected = F.adaptive_avg_pool2d(
                F.adaptive_avg_pool2d(padded[None], max(levels)), level
            )[0]
            torch.testing.assert_close(regions[b, : len(masks[b])], expected[:-1])
            torch.testing.assert_close(context[b, 0], expected[-1])
            assert not regions[b, len(masks[b]) :].any()


@pytest.mark.parametrize('use_masks', [True, False])
@pytest.mark.parametrize('add_context_box', [True, False])
def test_an_image_gives_the_same_alone_and_in_a_batch(use_masks, add_context_box):
    """Padding to the batch's object count must not leak, nor may other images' objects."""
    teacher = make_teacher(add_context_box=add_context_box, use_masks=use_masks)
    feats, batch = features(3), batch_of_masks()
    together = teacher(feats, torch.zeros(3, 3, *IMAGE), batch)
    for b, s in enumerate(batch):
        alone = teacher([x[b : b + 1] for x in feats], torch.zeros(1, 3, *IMAGE), [s])
        for x, y in zip(together, alone, strict=True):
            torch.testing.assert_close(x[b : b + 1], y)


@pytest.mark.parametrize('add_context_box', [True, False])
@pytest.mark.parametrize('use_masks', [True, False])
@pytest.mark.parametrize('counts', [(0, 0, 0), (0, 2, 0)])
def test_images_without_objects(add_context_box, use_masks, counts):
    """They are finite, and every parameter gets a gradient, as DDP wants it."""
    teacher = make_teacher(
        add_context_box=add_context_box, use_masks=use_masks, dtype=torch.float32
    )
    feats = features(3, dtype=torch.float32)
    batch = [
        sample(
            [[2, 2, 20, 20]] * n, [1] * n, masks=BitmapMasks(np.ones((n, *IMAGE), np.uint8), *IMAGE)
        )
        for n in counts
    ]
    out = teacher(feats, torch.zeros(3, 3, *IMAGE), batch)
    sum((x * torch.randn_like(x)).sum() for x in out).backward()
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_without_context_an_image_without_objects_is_painted_with_zeros():
    teacher = make_teacher(add_context_box=False)
    zero = sample([], [])
    out = teacher(features(1), torch.zeros(1, 3, *IMAGE), [zero])
    bias = teacher.knowledge_mapper.object_conv.bias
    for x in out:
        painted = bias[:, None, None].expand(x.shape[1:]).relu()[None]
        torch.testing.assert_close(x, teacher.knowledge_mapper.refine(painted))


@pytest.mark.parametrize('detach', [True, False])
def test_detach_appearance_decides_whether_the_student_gets_a_gradient(detach):
    teacher = make_teacher(detach_appearance=detach)
    feats = [x.requires_grad_() for x in features(3)]
    out = teacher(feats, torch.zeros(3, 3, *IMAGE), batch_of_boxes())
    sum((x * torch.randn_like(x)).sum() for x in out).backward()
    assert all((x.grad is None) == detach for x in feats)


@pytest.mark.parametrize(
    'box',
    [
        [5, 5, 5, 5],
        [30, 30, 10, 10],
        [-50, -50, -10, -10],
        [1e9, 1e9, 2e9, 2e9],
        [float('nan'), 0, 10, 10],
        [float('-inf'), 0, float('inf'), 10],
    ],
)
@pytest.mark.parametrize('use_masks', [True, False])
def test_any_box_is_finite(box, use_masks):
    teacher = make_teacher(use_masks=use_masks, dtype=torch.float32)
    masks = BitmapMasks(np.ones((1, *IMAGE), np.uint8), *IMAGE)
    out = teacher(
        features(1, dtype=torch.float32),
        torch.zeros(1, 3, *IMAGE),
        [sample([box], [0], masks=masks)],
    )
    sum(x.square().sum() for x in out).backward()
    assert all(x.isfinite().all() for x in out)
    assert all(p.grad.isfinite().all() for p in teacher.parameters() if p.grad is not None)


def test_polygon_masks_are_read():
    square = np.array([8.0, 8, 30, 8, 30, 30, 8, 30])
    polygons = PolygonMasks([[square]], *IMAGE)
    bitmaps = BitmapMasks(polygons.to_ndarray(), *IMAGE)
    teacher, feats = make_teacher(use_masks=True), features(1)
    outs = [
        teacher(feats, torch.zeros(1, 3, *IMAGE), [sample([[8, 8, 30, 30]], [0], masks=masks)])
        for masks in (polygons, bitmaps)
    ]
    for x, y in zip(*outs, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize('boxes', [torch.rand(2, 5), torch.rand(2, 8), torch.rand(8)])
def test_boxes_that_are_not_axis_aligned_are_refused(boxes):
    data_sample = sample([], [])
    data_sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes)).long())
    with pytest.raises(
        ConfigError, match=r'boxes of shape \(.*\); accepted: axis-aligned .*x1, y1, x2, y2'
    ):
        LabelledObjects(torch.zeros(1, 3, *IMAGE), [data_sample], False, True)


def test_missing_masks_are_named():
    teacher = make_teacher(use_masks=True)
    with pytest.raises(ConfigError, match=r'^use_masks is True.*with_mask=True'):
        teacher(features(3), torch.zeros(3, 3, *IMAGE), batch_of_boxes())


def test_channels_that_disagree_are_named():
    with pytest.raises(
        ConfigError, match=r'in_channels is \[16\], but .* levels of \[8, 8, 8\] channels'
    ):
        make_teacher()(features(3, channels=8), torch.zeros(3, 3, *IMAGE), batch_of_boxes())


@pytest.mark.parametrize(
    'wrong',
    [dict(in_channels=[16, 0]), dict(in_channels=[]), dict(num_classes=0), dict(refine_convs=0)],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LabelEncoderTeacher(**dict(in_channels=16, num_classes=3) | wrong)


@pytest.mark.parametrize(
    ('in_channels', 'width'),
    [(16, 16), ([16, 16], 16), (12, 256), ([16, 32], 256), (1024, 256), ([512] * 3, 512)],
)
def test_levels_are_worked_on_in_one_width(in_channels, width):
    for module in (LabelEncoderTeacher(in_channels, num_classes=2), FeatureAdapter(in_channels)):
        convs = (
            module.convs if isinstance(module, FeatureAdapter) else module.knowledge_mapper.refine
        )
        # The adapter has no attention, and so no need of a multiple of 8.
        expected = 12 if in_channels == 12 and isinstance(module, FeatureAdapter) else width
        assert convs[0].in_channels == expected
        projected = {c for c in np.atleast_1d(in_channels).tolist() if c != expected}
        assert {int(c) for c in module.projection.inward} == projected


def test_a_projected_teacher_is_a_plain_one_between_two_projections():
    channels = [16, 24]
    teacher = LabelEncoderTeacher(channels, num_classes=3).double()
    plain = LabelEncoderTeacher(256, num_classes=3).double()
    weights = {k: v for k, v in teacher.state_dict().items() if not k.startswith('projection')}
    plain.load_state_dict(weights)
    feats = [
        torch.randn(3, c, *size, dtype=torch.float64)
        for c, size in zip(channels, LEVELS[:2], strict=True)
    ]
    inputs, batch = torch.zeros(3, 3, *IMAGE), batch_of_boxes()
    into, back = teacher.projection.inward, teacher.projection.outward
    wide = [into[str(c)](x) for c, x in zip(channels, feats, strict=True)]
    expected = plain(wide, inputs, batch)
    for c, x, y in zip(channels, teacher(feats, inputs, batch), expected, strict=True):
        torch.testing.assert_close(x, back[str(c)](y))


def test_more_classes_than_256_are_embedded():
    few, many = LabelEncoderTeacher(16, 256), LabelEncoderTeacher(16, 1203)
    assert few.class_code.embedding is None
    assert many.class_code.channels == 64
    assert sum(p.numel() for p in many.parameters()) < 5e6


def test_embedded_classes_tell_classes_apart():
    teacher = LabelEncoderTeacher(16, num_classes=300)
    inputs, feats = torch.zeros(1, 3, *IMAGE), features(1, dtype=torch.float32)

    def first_level(label):
        return teacher(feats, inputs, [sample([[3, 4, 30, 21]], [label])])[0]

    assert torch.equal(first_level(7), first_level(7))
    assert not torch.allclose(first_level(7), first_level(299), atol=1e-3)
    first_level(299).square().sum().backward()
    touched = teacher.class_code.embedding.weight.grad.abs().sum(1).nonzero().flatten()
    assert touched.tolist() == [299]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_huge_regions_are_averaged_in_float32_under_autocast(dtype):
    """1 / area of a region of 2^18 pixels is 3.8e-6: a few steps of float16 above zero."""
    encoder = AppearanceEncoder(8)
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
    images, batch = torch.zeros(3, 3, *IMAGE), batch_of_masks()
    rough = [x.to(dtype) for x in features(3, dtype=torch.float32)]
    with torch.no_grad(), torch.autocast('cpu', dtype):
        found = teacher(rough, images, batch)
        expected = teacher([x.float() for x in rough], images, batch)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_features_at_the_end_of_float16_stay_finite(dtype):
    teacher = make_teacher(channels=10, dtype=torch.float32)  # projected to a width of 256
    adapters = [FeatureAdapter(16), FeatureAdapter([16, 24]), ChannelAdapter([16], [24])]
    for parameter in torch.nn.ModuleList(adapters).parameters():  # so that each sum is too large
        parameter.data *= 4
    feats = [6e4 * x.sign() for x in features(3, 10, torch.float32)]
    with torch.autocast('cpu', dtype):
        made = [*teacher([x.to(dtype) for x in feats], torch.zeros(3, 3, *IMAGE), batch_of_boxes())]
        for adapter in adapters:
            (x,) = adapter([torch.full((1, 16, 4, 4), 6e4, dtype=dtype)])
            made.append(instance_norm(x))
    assert all(x.isfinite().all() for x in made)
    sum(x.float().square().mean() for x in made).backward()
    modules = [teacher, *(adapters[index] for index in (0, 2))]
    grads = [x.grad for module in modules for x in module.parameters()]
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize(
    ('num_objects', 'size', 'channels'),
    [(1, (9, 7), 16), (5, (9, 7), 16), (40, (9, 7), 16), (3, (1, 1), 16), (60, (16, 12), 128)],
)
def test_kernels_on_regions_equal_painting_and_convolving(num_objects, size, channels):
    mapper = KnowledgeMapper(channels, True, 3).double()
    vectors = torch.randn(1, 2, 1 + num_objects, channels, dtype=torch.float64, requires_grad=True)
    rows, columns = (torch.rand(2, num_objects, n, dtype=torch.float64) for n in size)
    regions = rows.unsqueeze(-1) * columns.unsqueeze(-2)
    with torch.no_grad():
        mapper.object_proj.weight.copy_(torch.eye(channels))
    painted = sum(
        (vectors[0, :, 1 + n] + mapper.object_proj.bias)[..., None, None] * regions[:, n, None]
        for n in range(num_objects)
    )
    conv, everywhere = mapper.object_conv, mapper.context_proj(vectors[0, :, 0])
    expected = F.conv2d(painted, conv.weight, conv.bias, padding=1) + everywhere[:, :, None, None]
    inputs = (vectors, conv.weight, conv.bias)
    probe = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, inputs, probe)
    whole = F.pad(regions, (0, 0, 0, 0, 1, 0), value=1)
    sides = [F.pad(F.pad(x, (1, 1)), (0, 0, 1, 0), value=1) for x in (rows, columns)]
    shifted = [x.unfold(-1, x.shape[-1] - 2, 1) for x in sides]
    for of_level in (Regions(whole), Regions(whole, *shifted)):
        found = mapper.painted_conv(mapper.kernels(vectors)[0], of_level)
        torch.testing.assert_close(found, expected)
        for one, other in zip(torch.autograd.grad(found, inputs, probe), gradients, strict=True):
            torch.testing.assert_close(one, other)
