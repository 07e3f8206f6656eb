"""Training steps of distilled detectors: finite in each precision, without host synchronisations."""

import math
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, arm_configs
from mmdet_sssd.commands.random_batch import random_batch
from mmdet_sssd.commands.training_steps import Trainee

from ..stock_detectors import stock_config
from .checks import Settings, Skipped, Wrong

DETECTORS = {
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'fcos': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'faster_rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'dino': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
}
FLOAT32, BFLOAT16, FLOAT16 = PRECISIONS = ('float32', 'bfloat16', 'float16')
RATE = 1e-4
SYNCHRONISES = 'called a synchronizing CUDA operation'
THE_ONE_ANSWER = '_without_degenerate_boxes'  # reads which boxes of the batch are left out


def config_of(name: str, settings: Settings, small: bool = False) -> str:
    """Name a detector's config; that of a small one is written first."""
    if not (settings.short or small):
        return DETECTORS[name]
    path = settings.out / f'small_{name}.py'
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=RATE))
    cfg = Config(dict(default_scope='mmdet', model=stock_config(name), optim_wrapper=wrapper))
    cfg.dump(path)
    return str(path)


def trainee(
    name: str, arm: str, settings: Settings, precision: str = FLOAT32, small: bool = False
) -> Trainee:
    """Build a detector, alone (``'baseline'``) or distilled (``'paper'``), that learns."""
    options = BenchmarkOptions(
        config_of(name, settings, small),
        [arm],
        shape=(64, 96) if settings.short or small else (800, 1344),
        device=settings.device,
        amp=precision != FLOAT32,
    )
    (cfg,) = arm_configs(options).values()
    if precision != FLOAT32 and settings.on_gpu:
        cfg.optim_wrapper.dtype = precision
    make_batch = partial(
        random_batch, shape=options.shape, batch_size=options.batch, num_objects=options.objects
    )
    made = Trainee(cfg, make_batch, settings.device)
    for group in made.optim_wrapper.param_groups:
        group['lr'] = RATE
    return made


def finite_steps(trained: Trainee, count: int) -> dict[str, Any]:
    """Train some steps; gives the first and last loss.

    Raises:
        Wrong: if a loss or a weight is not finite, or no weight has moved.
    """
    before = [x.detach().clone() for x in trained.model.parameters()]
    losses: list[float] = []
    with _logged(trained) as logged:
        for _ in range(count):
            trained.step()
            losses.append(logged[-1].pop('loss'))
            wrong = [key for key, value in logged[-1].items() if not math.isfinite(value)]
            if wrong or not math.isfinite(losses[-1]):
                raise Wrong(f'not finite in step {len(losses)}: {wrong or "loss"}', losses=losses)
    after = [*trained.model.parameters()]
    if not all(x.isfinite().all() for x in after):
        raise Wrong('weights are not finite', losses=losses)
    if all(torch.equal(x, y) for x, y in zip(before, after, strict=True)):
        raise Wrong('no weight has moved', losses=losses)
    numbers = dict(first_loss=losses[0], last_loss=losses[-1])
    if (scaler := getattr(trained.optim_wrapper, 'loss_scaler', None)) is not None:
        numbers['loss_scale'] = scaler.get_scale()
    return numbers


@contextmanager
def _logged(trained: Trainee) -> Iterator[list[dict[str, float]]]:
    """Note what each step logs."""
    logged, train_step = [], trained.model.train_step

    def noting(*args: Any) -> dict:
        found = train_step(*args)
        logged.append({key: float(value) for key, value in found.items()})
        return found

    trained.model.train_step = noting
    try:
        yield logged
    finally:
        del trained.model.train_step


def steps(name: str, precision: str, settings: Settings) -> dict[str, Any]:
    """Train the distilled detector some steps, where stock's trains."""
    if precision == FLOAT16 and not settings.on_gpu:
        raise Skipped('mixed precision on a CPU is bfloat16')
    count = 2
    if settings.on_gpu:
        count = 8 if precision == FLOAT16 else 4  # the loss scale has to come down first
    stock = _of_stock(lambda: finite_steps(trainee(name, 'baseline', settings, precision), count))
    found = finite_steps(trainee(name, 'paper', settings, precision), count)
    return dict(stock_loss=stock['first_loss'], **found)


def compiled(name: str, settings: Settings) -> dict[str, Any]:
    """Train it compiled as mmengine does, a small one: the time to compile grows with the layers."""
    if not settings.on_gpu:
        raise Skipped('tests/machinery/test_compile.py shows this on a CPU')
    plain = finite_steps(trainee(name, 'paper', settings, small=True), 1)

    def train(arm: str) -> dict[str, Any]:
        torch._dynamo.reset()
        made = trainee(name, arm, settings, small=True)
        made.model.train_step = torch.compile(made.model.train_step)
        return finite_steps(made, 3)

    _of_stock(lambda: train('baseline'))
    found = train('paper')
    error = abs(found['first_loss'] / plain['first_loss'] - 1)
    if error > 0.01:
        raise Wrong(f'the first loss is {error:.1%} from that of the plain step', **found)
    return dict(**found, loss_error=error)


def _of_stock(train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return train()
    except Exception as error:
        raise Skipped(f'the stock detector fails too: {type(error).__name__}: {error}') from error


def host_synchronisations(name: str, settings: Settings) -> dict[str, Any]:
    """Count where a step waits for the GPU, beyond twice what stock's step does at the same place."""
    if not settings.on_gpu:
        raise Skipped('there is no GPU to wait for')
    found = {
        arm: synchronising_places(trainee(name, arm, settings)) for arm in ('baseline', 'paper')
    }
    stock, ours = found.values()
    beyond = {
        place: count - 2 * stock[place] for place, count in ours.items() if count > 2 * stock[place]
    }
    numbers = dict(stock=stock.total(), distilled=ours.total(), beyond=sum(beyond.values()))
    more = {place: count for place, count in beyond.items() if THE_ONE_ANSWER not in place}
    if more:
        raise Wrong(f'beyond stock: {more}', **numbers)
    return numbers


def synchronising_places(trained: Trainee) -> Counter[str]:
    """Count, by place in the code, the host synchronisations of a step that is not the first."""
    trained.step()
    places: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any) -> None:
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


CHECKS = {
    **{f'{name}_{x}': partial(steps, name, x) for x in PRECISIONS for name in DETECTORS},
    **{f'{name}_host_synchronisations': partial(host_synchronisations, name) for name in DETECTORS},
}
COMPILED = {name: partial(compiled, name) for name in DETECTORS}
