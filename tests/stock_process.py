"""Runs exported students in stock mmdet, in a process that cannot import mmdet_sssd.

Usage: stock_process.py IMAGE_DIR OUT.pkl CONFIG CHECKPOINT [CONFIG CHECKPOINT ...]. What each pair
gives is written to OUT.pkl, by the config's name.
"""

import contextlib
import io
import os.path as osp
import pickle
import runpy
import sys
import tempfile
from pathlib import Path

import mmdet
import torch
from mmdet.apis import DetInferencer, init_detector
from mmengine import load

TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'


class Blocker:
    """Refuses to import the package."""

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'mmdet_sssd':
            raise ImportError('mmdet_sssd is not to be imported here')


def run_tool(name, *args):
    """Run one of mmdet's tools in this process and give what it prints."""
    sys.argv = [name, *map(str, args)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(TOOLS / name), run_name='__main__')
    return printed.getvalue()


def run_pair(image_dir, config, checkpoint):
    """Use a config and a checkpoint in every way that a user of stock mmdet has."""
    restricted = torch.load(checkpoint, weights_only=True)
    inferencer = DetInferencer(config, checkpoint, device='cpu', show_progress=False)
    alone = DetInferencer(weights=checkpoint, device='cpu', show_progress=False)
    images = sorted(str(path) for path in Path(image_dir).iterdir())
    with tempfile.TemporaryDirectory() as folder:
        dump = osp.join(folder, 'dump.pkl')
        run_tool('test.py', config, checkpoint, '--work-dir', folder, '--out', dump)
        tested = load(dump)
    return dict(
        meta=restricted['meta'],
        keys=list(restricted),
        predictions=inferencer(images, return_datasamples=True)['predictions'],
        predictions_of_the_checkpoint_alone=alone(images, return_datasamples=True)['predictions'],
        tested=tested,
        flops=run_tool('analysis_tools/get_flops.py', config, '--num-images', 1),
        detector=type(init_detector(config, checkpoint, device='cpu')).__name__,
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    sys.meta_path.insert(0, Blocker())
    image_dir, out, *pairs = sys.argv[1:]
    results = {
        Path(config).stem: run_pair(image_dir, config, checkpoint)
        for config, checkpoint in zip(pairs[::2], pairs[1::2], strict=True)
    }
    assert not any(name.startswith('mmdet_sssd') for name in sys.modules)
    Path(out).write_bytes(pickle.dumps(results))
