"""Where does SSSD help, and what decides the sign? Trains the cells of a plan written down here.

    python -m tests.studies.where DATA                   a worker; start one for each core
    python -m tests.studies.where DATA --plan curve      only this part of the plan
    python -m tests.studies.where DATA --list            the cells and what is known of each

Each cell is a run on one thread and ends as one line of ``docs/benchmarks/where-it-helps.jsonl``: its
settings, the commit, AP on validation images along the run and on test images at its end, and, with
SSSD, the teacher's AP and the gradients of the three losses. Cells with a line are skipped; workers
share the others; a killed one goes on from its last checkpoint in ``work_dirs/where``. The drawn set
is made in DATA if it is not there; real ones lie beside it, as for ``tests.studies.gain``.
"""

import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_sssd.commands.locks import locked
from mmdet_sssd.commands.pictograms import CLASSES
from mmdet_sssd.commands.shapes import draw_data_set
from mmdet_sssd.hooks import EvalTeacherHook
from mmdet_sssd.recipes import gentle, paper

from .where_record import RecordHook, coco

RESULTS = Path('docs/benchmarks/where-it-helps.jsonl')
WORK_DIRS = Path('work_dirs/where')
DRAWN = dict(train=30_000, val=1_000, test=2_000, hard=True)
SCALES = {'pictograms': '96x96', 'iiit5k': '192x64'}
RATIOS = {'pictograms': [1.0], 'iiit5k': [1.0, 2.0]}  # of anchors; each takes a sixth of the time
FLIPS = {'pictograms': 0.5, 'iiit5k': 0.0}  # a mirrored letter is another one
IMAGE_FOLDERS = {'pictograms': ('train', 'val', 'test'), 'iiit5k': ('images',) * 3}
BATCH_SIZE = 16
POINTS = 8  # validations along a run
MEASURE_EVERY = 150  # iterations between measurements of gradients

BASE = dict(
    data='pictograms',
    images=30_000,
    detector='retinanet',
    width=32,  # channels of neck and head
    base_channels=16,  # of the backbone, 64 in a usual ResNet
    optimizer='AdamW',
    lr=1e-3,
    arm='baseline',
    epochs=4,
    seed=0,
    classes='all',  # or the first or second half
    start='random',  # or the backbone of a baseline that has learned the first half
)
HALVES = dict(first=slice(0, len(CLASSES) // 2), second=slice(len(CLASSES) // 2, None))
OPTIMIZERS = dict(
    AdamW=dict(weight_decay=0.05, fused=True),
    SGD=dict(momentum=0.9, weight_decay=1e-4, fused=True),
)
RATIO = 'hooks.distill_coef.ratio'
HEAD_GRAD = 'model.teacher_head_grad'
ARMS = {
    'sssd': {},
    'coef-0': {'model.distill_coef': 0.0},  # the teacher's detection loss alone
    'ratio-0.05': {RATIO: 0.05},
    'ratio-0.25': {RATIO: 0.25},
    'features': {RATIO: 0.25, HEAD_GRAD: 0.0},  # its loss trains features, not the head
    'features-1': {RATIO: 1.0, HEAD_GRAD: 0.0},
    'no-cls': {RATIO: 0.25, HEAD_GRAD: {'cls': 0.0}},
    'gentle': {
        RATIO: gentle.hooks['distill_coef']['ratio'],
        HEAD_GRAD: gentle.model['teacher_head_grad'],
        'model.economy': gentle.model['economy'],
        'hooks.phases.teacher_until': gentle.hooks['phases']['teacher_until'],
    },
    'blind': {RATIO: 0.25, 'model.teacher': dict(class_vectors=False)},  # LGD's teacher
    'detach': {RATIO: 0.25, 'model.teacher': dict(detach_appearance=True)},
}
# The recipe of today, with SGD from random weights `late`; `gentle` is without it, as it was measured.
ARMS['lead'] = {**ARMS['gentle'], 'hooks.phases.teacher_must_lead': True}
ARMS['late'] = {**ARMS['lead'], 'hooks.phases.detach_student': 1 / 3}
ARMS['weak'] = {**ARMS['lead'], RATIO: 0.1}
ARMS['gentle-features'] = {**ARMS['gentle'], HEAD_GRAD: 0.0}
ARMS['alone'] = {  # the teacher's loss trains the teacher alone
    **ARMS['gentle-features'],
    'hooks.phases.teacher_must_lead': True,
    'model.teacher': dict(detach_appearance=True),
}
"""What each arm changes in SSSD's defaults, with random weights; ``baseline`` is stock."""


def cells(*changes: dict, **grid: list) -> list[dict]:
    """Make the cells that differ from the base as said, for each combination of a grid."""
    found = [{**BASE, **x} for x in changes or ({},)]
    for key, values in grid.items():
        found = [{**cell, key: value} for cell in found for value in values]
    return found


SGD = {'optimizer': 'SGD', 'lr': 0.05}
RATES = [{'lr': 2e-3}, {**SGD, 'lr': 0.1}, {'lr': 5e-4}, {**SGD, 'lr': 0.02}]
FEWER = [{'images': 30_000 // x, 'epochs': x * BASE['epochs']} for x in (16, 4)]
LONGER = [{'epochs': 8}, {'images': 7500, 'epochs': 32}, {'epochs': 16}]
NEAR = [{'images': 7500, 'epochs': 64}, {'images': 3750, 'epochs': 64}]  # the plateau
DOUBLED = [{**x, 'epochs': 128} for x in NEAR]  # what does a doubling bring?
STARTS = [{'classes': 'second', 'start': x} for x in ('first', 'random')]
PAIR = ['baseline', 'gentle']
FIRST = [*PAIR, 'features', 'ratio-0.25']
PLANS = dict(  # in the order of what they tell for their time
    sign=cells(arm=[*FIRST, 'features-1', 'blind']),
    spread=cells(arm=PAIR, seed=[*range(5)]) + cells(arm=['features'], seed=[1]),
    fewer=cells(*FEWER, arm=FIRST),
    sgd=cells(SGD, arm=FIRST) + cells(SGD, arm=PAIR, seed=[1, 2]),
    sgd_why=cells(SGD, arm=['gentle-features'])
    + cells(SGD, arm=['lead', 'late', 'weak'], seed=[0, 1])
    + cells(SGD, arm=['baseline', 'late'], seed=[2])  # by which nothing is chosen
    + cells({**SGD, 'epochs': 8}, arm=['late'])
    + cells({**SGD, 'epochs': 8}, arm=[*PAIR, 'alone'])
    + cells({**SGD, 'epochs': 8}, arm=['baseline', 'lead'], seed=[*range(3)]),
    alone=cells(LONGER[1], SGD, arm=['alone'], seed=[*range(3)])
    + cells(arm=['alone'], seed=[*range(5)])
    + cells(NEAR[1], arm=['alone'], seed=[*range(5)]),
    coef=cells(arm=['sssd', 'coef-0', 'ratio-0.05']),
    width=cells({'width': 64}, arm=PAIR) + cells({'width': 128}, arm=PAIR),
    start=cells(*STARTS, {**STARTS[0], **SGD}, arm=PAIR) + cells(STARTS[0], arm=PAIR, seed=[1, 2]),
    plateau=cells(*LONGER, arm=PAIR, seed=[*range(3)]),
    near=cells(*NEAR, arm=PAIR, seed=[*range(3)]) + cells(*DOUBLED),
    near_more=cells(NEAR[1], arm=PAIR, seed=[*range(3, 8)]),  # ±1 AP, if they spread as before
    near_learned=cells(*[{**STARTS[0], **x} for x in FEWER], arm=PAIR, seed=[*range(3)]),
    rates=cells(*RATES),
    teacher=cells(arm=['no-cls', 'detach']),
    lead=cells({}, SGD, *LONGER[1:2], NEAR[1], *STARTS[:1], arm=['lead']),
    iiit5k=cells({'data': 'iiit5k', 'images': 3873, 'epochs': 64}, arm=FIRST),
)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--plan', choices=PLANS, nargs='+', default=[*PLANS])
    parser.add_argument('--list', action='store_true', help='show the plan')
    parser.add_argument('--cell', help='train this one: its name as in --list')
    args = parser.parse_args()
    plan = {name_of(cell): cell for name in args.plan for cell in PLANS[name]}
    if args.list:
        show(plan)
    elif args.cell:
        train_alone(args.data, args.cell, plan[args.cell])
    else:
        draw(args.data)
        work(args.data, plan)


def name_of(cell: dict) -> str:
    """Name a cell by what differs from the base."""
    return ','.join(f'{k}={v}' for k, v in cell.items() if v != BASE[k]) or 'base'


def finished() -> dict[str, dict]:
    """Read the lines of the finished cells by name."""
    lines = RESULTS.read_text(encoding='utf-8').splitlines() if RESULTS.exists() else []
    found = [json.loads(x) for x in lines]
    return {name_of({**BASE, **x['cell']}): x for x in found}


def test_aps() -> dict[str, float]:
    """Read the finished cells' test AP in percent by name; 0 where nothing was detected."""
    return {name: 100 * x['test'].get('mAP', 0) for name, x in finished().items()}


def show(plan: dict[str, dict]) -> None:
    """Print each cell's test AP, if it has one, and its difference to the baseline's."""
    ap = test_aps()
    for name, cell in plan.items():
        baseline = name_of({**cell, 'arm': 'baseline'})
        found = f'{ap[name]:5.1f}' if name in ap else ''
        gain = f'{ap[name] - ap[baseline]:+5.1f}' if {name, baseline} <= ap.keys() else ''
        print(f'{found:5} {gain if name != baseline else "":5} {name}')


def draw(data: Path) -> None:
    """Draw the pictograms, unless they are there; other workers wait."""
    with locked(data / 'pictograms.lock'):
        if not (data / 'pictograms/annotations/test.json').exists():  # drawn last
            draw_data_set(data / 'pictograms', **DRAWN)


def work(data: Path, plan: dict[str, dict]) -> None:
    """Train the cells that nobody has trained or is training, in order, each in its own process."""
    for name in plan:
        if name in finished():
            continue
        command = [sys.executable, '-m', 'tests.studies.where', str(data), '--cell', name]
        code = subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}).returncode
        print(name, f'ended with {code}' if code else 'ended', flush=True)


def train_alone(data: Path, name: str, cell: dict) -> None:
    """Train a cell and write its line, unless it has one or another process trains it."""
    work_dir = WORK_DIRS / name
    with locked(WORK_DIRS / f'{name}.lock', wait=0) as mine:
        if not mine or name in finished():
            return
        line = dict(cell=cell, commit=commit(), **train(data, cell, work_dir))
        with locked(WORK_DIRS / 'results.lock'), RESULTS.open('a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')
        shutil.rmtree(work_dir)


def commit() -> str:
    """Name the commit that this run's code is of."""
    command = ['git', 'describe', '--always', '--dirty', '--exclude', '*']
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def train(data: Path, cell: dict, work_dir: Path) -> dict:
    """Train and test a cell, from its last checkpoint if there is one.

    Returns:
        ``val``, what :class:`RecordHook` wrote along the run, ``test``, and ``cpu_seconds``.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if cell['start'] == 'first':
        pretrain(data)
    runner = Runner.from_cfg(config_of(data, cell, work_dir))
    record = RecordHook(work_dir / 'record.jsonl', MEASURE_EVERY)
    runner.register_hook(record)
    runner.train()
    metrics = runner.test()
    if cell['arm'] != 'baseline':
        metrics.update(teacher_metrics(runner))
    return dict(
        val=record.lines,
        test=coco(metrics),
        cpu_seconds=round(sum(x['cpu_seconds'] for x in record.lines)),
    )


def pretrain(data: Path) -> None:
    """Train the detector whose backbone cells start from, unless DATA has it."""
    path, work_dir = data / 'first.pth', WORK_DIRS / 'first'
    with locked(data / 'first.lock'):
        if not path.exists():
            train(data, {**BASE, 'classes': 'first'}, work_dir)
            shutil.copy((work_dir / 'last_checkpoint').read_text().strip(), path)


def teacher_metrics(runner: Runner) -> dict[str, float]:
    """Evaluate the student's head on the teacher's features for the test images."""
    hook = EvalTeacherHook()
    hook.before_test(runner)
    return hook._evaluate(runner, 'test', runner.test_loop)


def config_of(data: Path, cell: dict, work_dir: Path) -> Config:
    """Make the config of a cell from the package's own."""
    set_data(data, cell)
    cfg = Config.fromfile(f'configs/demo/{cell["detector"]}_r18-small_own-data.py')
    cfg.merge_from_dict(
        model_changes(data, cell) | data_changes(cell) | run_changes(cell, work_dir)
    )
    if cell['arm'] != 'baseline':
        cfg.model = dict(type='SSSDDistiller', student=cfg.model)
        phases = dict(type='DistillPhasesHook', detach_student=1 / 6)
        hooks = {name: paper.hooks[name] for name in ('distill_coef', 'clipping')}
        cfg.default_hooks.update(phases=phases, **hooks)
        arm = {x.replace('hooks.', 'default_hooks.', 1): y for x, y in ARMS[cell['arm']].items()}
        cfg.merge_from_dict(arm)
    return cfg


def set_data(data: Path, cell: dict) -> None:
    """Set the variables that configs for one's own data read."""
    train_dir, val_dir, test_dir = IMAGE_FOLDERS[cell['data']]
    os.environ.update(
        SSSD_DATA_ROOT=str(data / cell['data']),
        SSSD_TEST_ANN='annotations/test.json',
        SSSD_TRAIN_IMG=train_dir,
        SSSD_VAL_IMG=val_dir,
        SSSD_TEST_IMG=test_dir,
        SSSD_IMAGE_SCALE=SCALES[cell['data']],
        SSSD_BATCH_SIZE=str(BATCH_SIZE),
        SSSD_MAX_EPOCHS=str(cell['epochs']),
    )


def model_changes(data: Path, cell: dict) -> dict:
    """Make the changes to the detector."""
    width, base = cell['width'], cell['base_channels']
    changes = {
        'model.backbone.base_channels': base,
        'model.neck.in_channels': [base, 2 * base, 4 * base, 8 * base],
        'model.neck.out_channels': width,
        'model.bbox_head.in_channels': width,
        'model.bbox_head.feat_channels': width,
        'model.bbox_head.anchor_generator.ratios': RATIOS[cell['data']],
    }
    if cell['start'] == 'first':
        path = str(data / 'first.pth')
        changes['model.backbone.init_cfg'] = dict(
            _delete_=True, type='Pretrained', checkpoint=path, prefix='backbone.'
        )
    return changes


def data_changes(cell: dict) -> dict:
    """Make the changes to the data, and to the number of its classes."""
    changes = {
        'train_dataloader.dataset.pipeline.3.prob': FLIPS[cell['data']],
        'train_dataloader.dataset.indices': cell['images'],
        'val_dataloader.batch_size': 50,
        'test_dataloader.batch_size': 50,
    }
    for split in ('train', 'val', 'test'):
        changes[f'{split}_dataloader.num_workers'] = 0
        changes[f'{split}_dataloader.persistent_workers'] = False
    if cell['classes'] != 'all':
        metainfo = dict(classes=CLASSES[HALVES[cell['classes']]])
        changes['model.bbox_head.num_classes'] = len(metainfo['classes'])
        for split in ('train', 'val', 'test'):
            changes[f'{split}_dataloader.dataset.metainfo'] = metainfo
    return changes


def run_changes(cell: dict, work_dir: Path) -> dict:
    """Make the changes to schedule, optimizer and hooks."""
    interval = max(1, cell['epochs'] // POINTS)
    iterations = cell['epochs'] * cell['images'] // BATCH_SIZE
    return {
        'custom_imports': dict(imports=['mmdet_sssd']),
        'optim_wrapper.optimizer': dict(
            _delete_=True, type=cell['optimizer'], lr=cell['lr'], **OPTIMIZERS[cell['optimizer']]
        ),
        'param_scheduler.0.end': max(2, min(1000, 1 + iterations // 20)),
        'train_cfg.val_interval': interval,
        'default_hooks.logger.interval': 50,
        'default_hooks.checkpoint': dict(
            type='SafeCheckpointHook', interval=interval, max_keep_ckpts=1, save_best=None
        ),
        'default_hooks.random_state': paper.hooks['random_state'],
        'default_hooks.preemption': paper.hooks['preemption'],
        'randomness.seed': cell['seed'],
        'work_dir': str(work_dir),
        # two runs of one name in a process would share their logs
        'experiment_name': str(work_dir),
        'visualizer.name': str(work_dir),
        'resume': True,
    }


if __name__ == '__main__':
    main()
