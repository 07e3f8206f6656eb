"""Mutation test: makes small changes to a source file, one at a time, and lists those no test notices.

Run it from the root of the repository with the tests of the file (a few seconds per change). It uses
cosmic-ray's operators:

    pip install --target /tmp/cosmic_ray cosmic-ray
    PYTHONPATH=/tmp/cosmic_ray OMP_NUM_THREADS=1 python -m tests.studies.mutants \
        mmdet_sssd/models/logit_term.py tests/models/test_terms.py --share 0.2

Each change is tested in a separate process, which imports the changed package; torch and mmdet are
imported only once. Programs that a test starts do not see the change.
"""

import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from argparse import ArgumentParser
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import mmdet.models  # noqa: F401  (imported once)
import pytest
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import _OPERATORS

UNTOUCHED = ('annassign', 'decorator', 'fstring', 'import_from', 'import_name', 'raise_stmt')


class DropCall(Operator):
    """Turns ``x.detach()`` into ``x``."""

    def mutation_positions(self, node):
        return [(node.children[i].start_pos, node.children[i + 1].end_pos) for i in _calls(node)]

    def mutate(self, node, index):
        i = _calls(node)[index]
        del node.children[i : i + 2]
        return node

    examples = classmethod(lambda cls: ())


def _calls(node) -> list[int]:
    parts = [x.get_code() for x in node.children] if node.type == 'atom_expr' else []
    return [i for i, x in enumerate(parts[1:-1], 1) if x.startswith('.') and parts[i + 1] == '()']


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed source."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source

    def find_spec(self, name, *_):
        if name == '.'.join(self.path.with_suffix('').parts):
            return importlib.util.spec_from_file_location(name, self.path.absolute(), loader=self)
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, self.path, 'exec'), vars(module))


def changes(source: str) -> dict[tuple, list[tuple[type[Operator], int]]]:
    """List the changes, as operator and occurrence, of each place in a source."""
    nodes = [*ast_nodes(get_ast(source))]
    untouched = [x for x in nodes if x.type in UNTOUCHED]
    untouched += [x.annotation for x in nodes if getattr(x, 'annotation', None) is not None]
    found = defaultdict(list)
    for operator in [DropCall, *(x for name, x in _OPERATORS.items() if 'Variable' not in name)]:
        places = (place for node in nodes for place in operator().mutation_positions(node))
        for occurrence, (start, end) in enumerate(places):
            if not any(x.start_pos <= start and end <= x.end_pos for x in untouched):
                found[start, end].append((operator, occurrence))
    return found


def survives(path: Path, source: str, tests: list[str], timeout: float) -> bool:
    """Run the tests on a changed source in a process of its own."""
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.meta_path.insert(0, Changed(path, source))
        os._exit(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *tests]))
    end = time.monotonic() + timeout
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.05)
    return ended[1] == 0


if __name__ == '__main__':
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('tests', nargs='+', help='files, or other arguments of pytest')
    parser.add_argument('--share', type=float, default=1, help='share of the places to change')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--timeout', type=float, default=120, help='seconds for each change')
    args, more = parser.parse_known_args()
    source, tests = args.source.read_text(), [*args.tests, *more]
    torch.set_num_threads(1)
    if not survives(args.source, source, tests, args.timeout):
        parser.error('the tests fail on the source as it is')
    draw, found = random.Random(args.seed), changes(source)
    for place in sorted(draw.sample(sorted(found), round(len(found) * args.share))):
        operator, occurrence = draw.choice(found[place])
        changed = mutate_code(source, operator(), occurrence)
        outcome = 'SURVIVED' if survives(args.source, changed, tests, args.timeout) else 'killed'
        line = place[0][0]
        print(outcome, f'{args.source}:{line}', changed.splitlines()[line - 1].strip(), flush=True)
