"""Training steps of distilled detectors: finite in each precision, without host synchronisations."""

import math
import traceback
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, arm_configs
from mmdet_sssd.commands.random_batch import random_batch
from mmdet_sssd.commands.training_steps import Trainee

from ..stock_detectors import stock_config
from . import DEVICE, ON_GPU, SHORT

DETECTORS = {
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'fcos': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'faster_rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'dino': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
}
SHOWN = DETECTORS if ON_GPU else ['retinanet']
PRECISIONS = ('float32', 'bfloat16', 'float16') if ON_GPU else ('float32',)
RATE = 1e-4
SYNCHRONISES = 'called a synchronizing CUDA operation'
THE_ONE_ANSWER = '_without_degenerate_boxes'  # reads which boxes of the batch are left out


def config_of(name: str, folder: Path, small: bool = SHORT) -> str:
    """Name a detector's config; that of a small one is written first."""
    if not small:
        return DETECTORS[name]
    path = folder / f'small_{name}.py'
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=RATE))
    cfg = Config(dict(default_scope='mmdet', model=stock_config(name), optim_wrapper=wrapper))
    cfg.dump(path)
    return str(path)


def trainee(
    name: str, arm: str, folder: Path, precision: str = 'float32', small: bool = SHORT
) -> Trainee:
    """Build a detector, alone (``'baseline'``) or distilled (``'paper'``), that learns."""
    options = BenchmarkOptions(
        config_of(name, folder, small),
        [arm],
        shape=(64, 96) if small else (800, 1344),
        device=DEVICE,
        amp=precision != 'float32',
    )
    (cfg,) = arm_configs(options).values()
    if precision != 'float32':
        cfg.optim_wrapper.dtype = precision
    make_batch = partial(
        random_batch, shape=options.shape, batch_size=options.batch, num_objects=options.objects
    )
    made = Trainee(cfg, make_batch, DEVICE)
    for group in made.optim_wrapper.param_groups:
        group['lr'] = RATE
    return made


def losses_of(trained: Trainee, count: int) -> list[float]:
    """Train some steps and give their losses; all is finite, and a weight moves."""
    before = [x.detach().clone() for x in trained.model.parameters()]
    logged, train_step = [], trained.model.train_step
    trained.model.train_step = lambda *args: logged.append(train_step(*args)) or logged[-1]
    for _ in range(count):
        trained.step()
    assert all(math.isfinite(float(x)) for step in logged for x in step.values())
    after = [*trained.model.parameters()]
    assert all(x.isfinite().all() for x in after)
    assert not all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    return [float(x['loss']) for x in logged]


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('name', SHOWN)
def test_steps_stay_finite(name, precision, tmp_path, note):
    count = 8 if precision == 'float16' else 4 if ON_GPU else 2  # the loss scale comes down first
    try:
        stock = losses_of(trainee(name, 'baseline', tmp_path, precision), count)
    except Exception as error:
        pytest.skip(f'the stock detector fails too: {error}')
    losses = losses_of(trainee(name, 'paper', tmp_path, precision), count)
    note(stock_loss=stock[0], first_loss=losses[0], last_loss=losses[-1])


@pytest.mark.skipif(not ON_GPU, reason='tests/machinery/test_compile.py shows this on a CPU')
@pytest.mark.parametrize('name', DETECTORS)
def test_compiled_steps_have_the_plain_one_s_loss(name, tmp_path):
    """Of a small detector: the time to compile grows with the layers."""
    plain = losses_of(trainee(name, 'paper', tmp_path, small=True), 1)
    torch._dynamo.reset()
    made = trainee(name, 'paper', tmp_path, small=True)
    made.model.train_step = torch.compile(made.model.train_step)
    assert losses_of(made, 3)[0] == pytest.approx(plain[0], rel=0.01)


@pytest.mark.skipif(not ON_GPU, reason='there is no GPU to wait for')
@pytest.mark.parametrize('name', DETECTORS)
def test_a_step_waits_for_the_gpu_at_most_twice_where_stock_s_does(name, tmp_path, note):
    stock, ours = (
        synchronising_places(trainee(name, arm, tmp_path)) for arm in ('baseline', 'paper')
    )
    note(stock=stock.total(), distilled=ours.total())
    beyond = {place: count for place, count in ours.items() if count > 2 * stock[place]}
    assert not {place for place in beyond if THE_ONE_ANSWER not in place}


def synchronising_places(trained: Trainee) -> Counter[str]:
    """Count, by place in the code, the host synchronisations of a step that is not the first."""
    trained.step()
    places: Counter[str] = Counter()

    def note(message, *_):
        if SYNCHRONISES in str(message):
            places[_place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode('warn')
        try:
            trained.step()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return places


def _place() -> str:
    """Name the innermost line of mmdet's, mmengine's, mmcv's or our code that is running."""
    for frame in reversed(traceback.extract_stack()[:-2]):
        for package in ('mmdet_sssd', 'mmdet', 'mmengine', 'mmcv'):
            if f'/{package}/' in frame.filename:
                path = Path(frame.filename)
                return f'{package}: {path.name}:{frame.lineno} {frame.name}'
    return 'elsewhere'
