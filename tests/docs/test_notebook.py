"""The notebook: what it calls is there, and it runs from its first cell to its last."""

import ast
import importlib
import inspect
import os
import sys
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT, blocks_of

NOTEBOOKS = [page for page in PAGES if page.endswith('.ipynb')]


@pytest.mark.parametrize('page', NOTEBOOKS)
def test_what_a_notebook_imports_is_there_and_takes_what_it_is_given(page):
    code = ast.parse('\n'.join(b.text for b in blocks_of(page) if b.language == 'python'))
    imported = {
        alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in ast.walk(code)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert 'look_at_features' in imported
    for node in ast.walk(code):
        function = node.func if isinstance(node, ast.Call) else None
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            owner = imported.get(function.value.id, node)
            called = getattr(owner, function.attr) if owner is not node else None
        else:
            called = imported.get(getattr(function, 'id', None))
        if called and not any(isinstance(x, ast.Starred) for x in node.args):
            inspect.signature(called).bind(*node.args, **{x.arg: x.value for x in node.keywords})


@pytest.mark.slow
@pytest.mark.parametrize('page', NOTEBOOKS)
def test_a_notebook_runs(page, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    monkeypatch.setenv('NOTEBOOK_EPOCHS', '1')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    notebook = nbformat.read(ROOT / page, as_version=4)
    resources = {'metadata': {'path': str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    figures = [o for c in notebook.cells for o in c.get('outputs', ()) if 'image/png' in str(o)]
    assert len(figures) == 1
    last = notebook.cells[-1].outputs[0].text.split()
    assert any(name.startswith('epoch_1-') and name.endswith('.pth') for name in last)
