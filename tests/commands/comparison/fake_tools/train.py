"""Stands in for a training run of two epochs: `fake` of the config says what becomes of which seed."""

import json
import os
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

config, _, work_dir, *flags = sys.argv[1:]
cfg = runpy.run_path(config)
seed, fake, work_dir = cfg['randomness']['seed'], cfg['fake'], Path(work_dir)
with open(fake['calls'], 'a') as file:
    file.write(' '.join([work_dir.parent.name, str(seed), *flags]) + '\n')
print('training')
if seed in fake['hang']:
    pids = Path(fake['calls']).with_name('pids')
    pids.mkdir(exist_ok=True)
    (pids / str(os.getpid())).touch()
    time.sleep(60)
if seed in fake['crash']:
    sys.exit('error: there is no annotation file')
log = work_dir / f'run_{time.time_ns()}' / 'vis_data' / 'scalars.json'
log.parent.mkdir(parents=True)
rows = [
    {'coco/bbox_mAP': 0.1 * (seed + 1), 'step': 1},
    {'loss': 1.0, 'epoch': 2, 'iter': 1, 'step': 3},
]
if seed in fake['kill'] + fake['preempt'] and '--resume' not in flags:
    shutil.copy(fake['checkpoint'], work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    log.write_text(json.dumps(rows[0]) + '\n{"loss": 1.')
    if seed in fake['preempt']:
        sys.exit(75)
    os.kill(os.getpid(), signal.SIGKILL)
if seed not in fake['unvalidated']:
    rows.append(
        {'coco/bbox_mAP': 0.2 * (seed + 1), 'coco/cat_precision': 0.3, 'time': 1.0, 'step': 2}
    )
log.write_text(''.join(json.dumps(row) + '\n' for row in rows))
shutil.copy(fake['checkpoint'], work_dir / 'epoch_2.pth')
(work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
