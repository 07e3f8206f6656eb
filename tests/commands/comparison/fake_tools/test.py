"""Stands in for an evaluation: the AP is what `test_evaluator` of the config says, nothing if None."""

import json
import runpy
import sys
from pathlib import Path

config, checkpoint, _, work_dir = sys.argv[1:]
cfg = runpy.run_path(config)
assert Path(checkpoint).is_file()
with open(cfg['fake']['calls'], 'a') as file:
    file.write(f'test {cfg["randomness"]["seed"]} {Path(checkpoint).name}\n')
folder = Path(work_dir, '20260101_000000')
folder.mkdir(parents=True)
metrics = {'data_time': 0.1, 'time': 0.2}
if cfg['test_evaluator']['ap'] is not None:
    metrics['coco/bbox_mAP'] = cfg['test_evaluator']['ap']
(folder / '20260101_000000.json').write_text(json.dumps(metrics))
