"""Kills and resumes small runs with every pair of loop, sampler and stock hook or transform.

    PYTHONPATH=. python -m tests.studies.resumes [CASE…]

Prints a table: equal to the bit with the run that was left alone, or where they differ first. Each pair
is killed after a whole epoch, with two workers, and inside one, without.
"""

import logging
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch
from mmdet.utils import register_all_modules

import mmdet_sssd  # noqa: F401  (registers the package's modules)

from .. import quick_configs  # noqa: F401
from ..runs.stock_runs import CASES, ENDLESS, SAMPLERS, train
from ..runs.test_resume import assert_resumed_to_the_bit

KILLS = {  # before an iteration, by what precedes it in the last checkpoint
    'whole epochs': (9, 2, {}),
    'part of an epoch': (11, 0, dict(by_epoch=False, interval=3)),
}


def pairs(cases):
    for loop, sampler in product(('epochs', 'iterations'), SAMPLERS):
        for case in cases:
            is_endless = loop == 'epochs' and sampler in ENDLESS
            if not is_endless and not {'dataset'} <= SAMPLERS[sampler].keys() & CASES[case].keys():
                yield loop, sampler, case


def difference(loop, sampler, case, killed_before, workers, checkpoint):
    run = case, loop, sampler, workers
    with tempfile.TemporaryDirectory() as folder:

        def whole(*args):
            train(Path(folder, 'whole'), *args, checkpoint=checkpoint)
            return Path(folder, 'whole')

        killed = Path(folder, 'killed')
        try:
            assert_resumed_to_the_bit(killed, whole, killed_before, *run, checkpoint=checkpoint)
        except Exception as error:
            return f'{type(error).__name__}: {error}'.splitlines()[0][:60]
    return 'equal'


def main(cases):
    torch.set_num_threads(1)
    register_all_modules()
    logging.disable()
    print('| loop | sampler | hook or transform |', ' | '.join(KILLS), '|')
    print('|---|---|---|', *('---|' for _ in KILLS), sep='')
    for pair in pairs(cases or CASES):
        found = [difference(*pair, *kill) for kill in KILLS.values()]
        print('|', ' | '.join([*pair, *found]), '|', flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
