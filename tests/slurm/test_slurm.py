"""On a real Slurm, such as one_node.sh starts: what docs/scaling.md says is done there.

Run by hand, with SLURM_CONF in the environment: pytest -m slow tests/slurm
"""

import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from mmdet_sssd.runs import load_from_local

from ..commands.comparison.test_study import CONFIG
from ..small_runner import draw_shapes, shapes_environment
from ..tools.run_comparison import assert_equal_states

ROOT = Path(__file__).parents[2]
LIMIT = 600  # seconds that one of these may take
COMPARE = ['mmdet-sssd', 'compare', 'config.py', '--seeds', '1', '--no-dry-run']
COMPARE += ['--arms', 'baseline,paper']
ON_SLURM = ['--work-dir', 'work', '--slurm', 'time=30,cpus_per_task=1']


def slurm_answers() -> bool:
    return (
        bool(shutil.which('sinfo'))
        and not subprocess.run(['sinfo'], capture_output=True, check=False).returncode
    )


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm_answers(), reason='there is no Slurm, or it does not answer'),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small detector on drawn shapes, 12 epochs of 2 iterations."""
    (tmp_path / 'config.py').write_text(CONFIG.format(root=ROOT))
    environment = shapes_environment(draw_shapes(tmp_path / 'shapes'), epochs=12)
    environment['PATH'] = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sbatch_file() -> str:
    """The one in the documentation, for two tasks on this node."""
    text = (ROOT / 'docs/scaling.md').read_text()
    (script,) = re.findall(r'```bash\n(#!/bin/bash\n.*?)```', text, re.DOTALL)
    size = '--nodes=1 --ntasks-per-node=2 --cpus-per-task=1'
    return re.sub(r'--nodes=.*', size, script).replace('my_config.py', 'config.py')


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(1)


def has_trained(work_dir: Path) -> bool:
    return any(work_dir.glob('epoch_*.pth'))


def assert_same_end(*work_dirs: Path) -> None:
    ours, expected = (load_from_local(str(x / 'epoch_12.pth')) for x in work_dirs)
    for key in ('state_dict', 'optimizer'):
        assert_equal_states(ours[key], expected[key], key)


def run_job(folder: Path, name: str, is_preempted: bool = False) -> Path:
    """Train by the documentation's sbatch file, maybe with the signal sent before its end."""
    work_dir = folder / name
    script = sbatch_file().replace('--resume', f'--resume --work-dir {work_dir}')
    (folder / f'{name}.sh').write_text(script)
    command = ['sbatch', '--parsable', f'--output={name}.log', f'{name}.sh']
    job = subprocess.check_output(command, text=True).strip()
    if is_preempted:
        wait_until(lambda: has_trained(work_dir) or not _is_queued(job), f'{name} has trained')
        subprocess.check_call(['scancel', '--signal=USR1', job])
    wait_until(lambda: not _is_queued(job), f'{name} has ended')
    assert (work_dir / 'epoch_12.pth').exists(), (folder / f'{name}.log').read_text()
    return work_dir


def test_a_requeued_job_ends_as_one_that_was_left_alone(folder):
    whole = run_job(folder, 'whole')
    preempted = run_job(folder, 'preempted', is_preempted=True)
    assert 'resumed epoch' in (folder / 'preempted.log').read_text()
    assert_same_end(preempted, whole)


def _is_queued(job: str) -> bool:
    return bool(subprocess.check_output(['squeue', '--noheader', '--jobs', job], text=True))


def test_a_preempted_cell_of_a_comparison_is_queued_again(folder):
    """Two arms, one seed each; the baseline gets the signal that submitit asks Slurm for."""
    subprocess.run([*COMPARE, '--work-dir', 'whole'], check=True, timeout=LIMIT)

    with open(folder / 'compare.log', 'w', encoding='utf-8') as log:
        compare = subprocess.Popen([*COMPARE, *ON_SLURM], stdout=log)
    seed = folder / 'work/baseline/seed_0'
    wait_until(partial(has_trained, seed), 'the baseline has trained')
    subprocess.check_call(['scancel', '--signal=USR2', submitted_job(folder)])
    assert compare.wait(LIMIT) == 0
    assert 'SIGUSR2: the run ends after iteration' in (seed / 'output.log').read_text()
    assert 'resumed epoch' in (seed / 'output.log').read_text()
    assert_same_end(seed, folder / 'whole/baseline/seed_0')
    assert '| paper | 1 |' in (folder / 'compare.log').read_text()


def test_a_lost_job_of_a_comparison_is_reported(folder):
    """This Slurm has no accounting, so that only its queue says that the job has ended."""
    compare = subprocess.Popen([*COMPARE, *ON_SLURM], stdout=subprocess.PIPE, text=True)
    wait_until(partial(has_trained, folder / 'work/baseline/seed_0'), 'the baseline has trained')
    subprocess.check_call(['scancel', '--signal=KILL', '--full', submitted_job(folder)])
    output, _ = compare.communicate(timeout=LIMIT)
    assert compare.returncode == 1
    assert re.search(r'failed: baseline seed 0: its job \w+ was ended from outside', output)


def submitted_job(folder: Path) -> str:
    """Give the first cell's job."""
    (job,) = {x.name.partition('_')[0] for x in (folder / 'work/jobs').glob('*_submitted.pkl')}
    return f'{job}_0'
