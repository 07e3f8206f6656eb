"""Tells whether two runs went the same way to the bit."""

import json

import numpy as np
import torch

NOT_COMPARED = ('time', 'data_time', 'memory')


def scalars(work_dir) -> dict[int, dict]:
    """The logged training scalars by iteration, without what is time or memory.

    An iteration that was run more than once, by a killed run and the resumed one, must have logged
    the same each time.
    """
    rows = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        text = path.read_text()
        for line in text[: text.rfind('\n') + 1].splitlines():  # without one that a kill cut off
            row = json.loads(line)
            if 'loss' in row:
                row = {key: value for key, value in row.items() if key not in NOT_COMPARED}
                assert rows.setdefault(row['step'], row) == row, row['step']
    return rows


def assert_equal_states(x, y, path=''):
    """Compare nested checkpoints to the bit."""
    if isinstance(x, torch.Tensor):
        assert torch.equal(x, y), path
    elif isinstance(x, np.ndarray):
        assert np.array_equal(x, y), path
    elif isinstance(x, dict):
        assert x.keys() == y.keys(), path
        for key in x:
            assert_equal_states(x[key], y[key], f'{path}.{key}')
    elif isinstance(x, (list, tuple)):
        assert len(x) == len(y), path
        for index, pair in enumerate(zip(x, y, strict=True)):
            assert_equal_states(*pair, f'{path}.{index}')
    else:
        assert x == y, path
