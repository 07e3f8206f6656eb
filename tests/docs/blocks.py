"""The blocks of code on the documentation's pages, and the commands that their shell blocks run."""

import json
import re
import subprocess
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..command import write_program

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ('*.md', 'docs/**/*.md', 'docs/**/*.ipynb')
    for path in ROOT.glob(pattern)
    if 'work_dirs' not in path.parts
)
FENCED = re.compile(r'^( *)(```+|:::+)(.*)\n((?:.*\n)*?)\1\2 *$', re.M)
SPAN = re.compile(r'`([^`]+)`')
OUTPUT = re.compile(r' >\S+( 2>&1)?')  # where a command writes to
STUB = r"""#!/bin/bash
for name in ${!SSSD_@}; do printf '%s\x1f' "$name=${!name}"; done >>"$RECORD"
printf '%s\x1f' "@$AT" "${0##*/}" "$@" >>"$RECORD"
printf '\x1e' >>"$RECORD"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language ('' for pictures and output) and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'


@dataclass(frozen=True)
class Call:
    """A command as a shell would start it: where it stands, its settings, program and arguments."""

    where: str
    env: dict[str, str]
    program: str
    args: list[str]

    def __str__(self) -> str:
        return f'{self.where}: {self.program} {" ".join(self.args)}'


@cache
def text_of(page: str) -> str:
    """Read a page; a notebook's cells become text and blocks."""
    text = (ROOT / page).read_text(encoding='utf-8')
    if not page.endswith('.ipynb'):
        return text
    cells = []
    for cell in json.loads(text)['cells']:
        source = ''.join(cell['source'])
        magic = re.match(r'(?:%%?(\w+).*\n+)?', source)
        if cell['cell_type'] == 'code':
            language = 'bash' if magic[1] == 'bash' else 'python'
            source = f'```{language}\n{source[magic.end() :]}\n```'
        cells.append(source)
    return '\n\n'.join(cells)


@cache
def blocks_of(page: str) -> list[Block]:
    """List a page's blocks."""
    text = text_of(page)
    return [
        Block(page, text[: x.start()].count('\n') + 1, x[3].strip(), textwrap.dedent(x[4]))
        for x in FENCED.finditer(text)
    ]


def prose_of(page: str) -> str:
    """Give a page's text without its blocks, on the same lines."""
    return FENCED.sub(lambda x: '\n' * x[0].count('\n'), text_of(page))


def calls_of(page: str, folder: Path, programs: list[str]) -> list[Call]:
    """Run a page's shell blocks, one after the other, with stand-ins for all programs.

    Bash itself resolves variables, comments and continued lines. It refuses unset variables, programs
    that are not listed, and wrong syntax. Commands in backticks in the text run too.

    Args:
        page: The page.
        folder: An empty folder, for the stand-ins.
        programs: Their names.
    """
    for program in programs:
        write_program(folder / program, STUB)
    script = [
        f"export AT='{block}'\n{OUTPUT.sub('', block.text)}"
        for block in blocks_of(page)
        if block.language == 'bash'
    ]
    script += [f"export AT='{page}'\n{span}" for span in _spans_of(page, programs)]
    record = folder / 'record'
    record.touch()
    env = dict(PATH=str(folder), RECORD=str(record), SLURM_JOB_ID='1')
    ended = subprocess.run(
        ['/bin/bash', '-eu', '-c', '\n'.join(script)],
        cwd=folder,  # without this checkout's .venv
        env=env,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, ''), ended.stderr
    return [_call(row.split('\x1f')[:-1]) for row in record.read_text().split('\x1e')[:-1]]


def _spans_of(page: str, programs: list[str]) -> list[str]:
    """Find the commands in a page's text: spans of code that begin with a program and go on."""
    spans = (' '.join(span.split()) for span in SPAN.findall(prose_of(page)))
    starts = re.compile(rf'([A-Z_]+=\S+ )*({"|".join(map(re.escape, programs))}) ')
    return [span for span in spans if starts.match(span) and '…' not in span]  # … is left out


def _call(words: list[str]) -> Call:
    start = next(i for i, word in enumerate(words) if word.startswith('@'))
    env = dict(word.split('=', 1) for word in words[:start])
    return Call(words[start][1:], env, words[start + 1], words[start + 2 :])
