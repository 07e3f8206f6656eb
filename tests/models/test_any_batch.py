"""Whatever the labels are: the distiller's own terms and all gradients stay finite.

In mixed precision too, with features from 1e-4 to 6e4, float16's last powers of ten.
"""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from mmdet_sssd.models import DetectorOutputs

from .. import toy_detector  # noqa: F401  (registers ToyDetector)
from ..distillers import TOY, backward, build
from ..stock_detectors import NUM_CLASSES

KINDS = ('inside', 'empty', 'thin', 'reversed', 'outside', 'huge', 'not a number')
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.one_of(st.integers(0, 12), st.integers(0, 300))  # objects in an image
TIMES = int(os.environ.get('TIMES', 1))  # as many batches, for a longer search
FUZZED = settings(
    max_examples=50 * TIMES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def box_of(kind: str, size: tuple[int, int], rng: np.random.Generator) -> tuple[float, ...]:
    height, width = size
    (x1, x2), (y1, y2) = (sorted(rng.uniform(0, side, 2)) for side in (width, height))
    return {
        'inside': (x1, y1, x2, y2),
        'empty': (x1, y1, x1, y2),
        'thin': (x1, y1, x2, y1 + 0.3),
        'reversed': (x2, y2, x1, y1),
        'outside': (x1 + width, y1 - 2 * height, x2 + width, y2 - 2 * height),
        'huge': (-1e6 * x1, -1e30 * y1, 1e6 * x2, 1e30 * y2),
        'not a number': (x1 * np.nan, y1, x2 * np.inf, y2),
    }[kind]


def any_batch(seed, counts, size, num_classes, with_masks=False) -> dict:
    rng = np.random.default_rng(seed)
    samples = []
    for count in counts:
        boxes = [box_of(KINDS[x], size, rng) for x in rng.integers(len(KINDS), size=count)]
        content = tuple(int(rng.integers(16, side + 1)) for side in size)
        sample = DetDataSample(
            metainfo=dict(img_shape=content, pad_shape=size, batch_input_shape=size)
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            labels=torch.from_numpy(rng.integers(num_classes, size=count)),
        )
        if with_masks:
            masks = rng.integers(0, 2, (count, *content), dtype=np.uint8)
            sample.gt_instances.masks = BitmapMasks(masks, *content)
        samples.append(sample)
    inputs = torch.from_numpy(rng.standard_normal((len(counts), 3, *size), dtype=np.float32))
    return dict(inputs=inputs, data_samples=samples)


def assert_a_step_is_finite(model, batch) -> None:
    logged = backward(model, model(**batch, mode='loss'))
    assert all(value.isfinite() for value in logged.values()), logged
    wrong = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert wrong == []


ANY_TEACHER = dict(
    seed=SEEDS,
    counts=st.lists(COUNTS, min_size=1, max_size=3),
    size=st.tuples(st.integers(17, 90), st.integers(17, 90)),
    num_classes=st.one_of(st.integers(1, 90), st.integers(1, 1200)),
    with_masks=st.booleans(),
    context=st.booleans(),
)
ANY_DETECTOR = dict(  # stock's BN wants more than one value a channel
    seed=SEEDS,
    counts=st.lists(COUNTS, min_size=2, max_size=3),
    size=st.tuples(st.integers(65, 130), st.integers(65, 130)),
)


@settings(FUZZED)
@given(**ANY_TEACHER)
def test_teacher_and_distillation_loss(seed, counts, size, num_classes, with_masks, context):
    teacher = dict(num_classes=num_classes, use_masks=with_masks, add_context_box=context)
    model = build(TOY, teacher=teacher)
    assert_a_step_is_finite(model, any_batch(seed, counts, size, num_classes, with_masks))


@pytest.fixture(scope='module', params=['retinanet', 'fcos'])
def small_detector(request):
    return build(request.param)


@settings(FUZZED, max_examples=10 * TIMES)
@given(**ANY_DETECTOR)
def test_whole_step_of_a_stock_detector(small_detector, seed, counts, size):
    small_detector.train().zero_grad()
    assert_a_step_is_finite(small_detector, any_batch(seed, counts, size, NUM_CLASSES))


HALF = pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
FEW = dict(counts=st.lists(st.integers(0, 12), min_size=2, max_size=2), size=st.just((65, 72)))
MAGNITUDES = st.floats(-4, math.log10(6e4)).map(lambda power: 10**power)


def scaled(x, magnitude, dtype):
    """Scale features until their largest value has a magnitude."""
    x = x.float()  # the factor can be more than float16 holds
    return (x * (magnitude / x.detach().abs().max())).to(dtype)


@HALF
@settings(FUZZED, max_examples=6 * TIMES)
@given(magnitude=MAGNITUDES, **{**ANY_TEACHER, **FEW, 'num_classes': st.integers(1, 20)})
def test_teacher_and_loss_in_half_precision(
    dtype, magnitude, seed, counts, size, num_classes, **kinds
):
    """Of teacher, adapter and distillation loss; the toy's own loss would be stock's to guard."""
    with_masks, context = kinds['with_masks'], kinds['context']
    teacher = dict(num_classes=num_classes, use_masks=with_masks, add_context_box=context)
    model = build(TOY, teacher=teacher)
    teacher, term = model.teachers['teacher'].neck, model.terms['distill']
    batch = any_batch(seed, counts, size, num_classes, with_masks)
    inputs, samples = batch.values()
    with torch.autocast('cpu', dtype):
        feats = [scaled(x, magnitude, dtype) for x in model.student.extract_feat(inputs)]
        made = teacher(feats, inputs, samples)
        outputs = (DetectorOutputs(feats), DetectorOutputs(made).detach())
        loss = term(*outputs, inputs, samples)['loss']
    total = loss + sum(x.float().square().mean() for x in made)
    total.backward()
    assert loss.dtype == torch.float32
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        if not name.startswith('student.bbox_head'):
            assert parameter.grad.isfinite().all(), name
