"""The notebook: what it calls is there, and it runs from its first cell to its last."""

import os
import sys
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT, blocks_of

NOTEBOOKS = [page for page in PAGES if page.endswith('.ipynb')]


@pytest.mark.parametrize('page', NOTEBOOKS)
def test_what_a_notebook_imports_is_there(page):
    lines = [x for b in blocks_of(page) if b.language == 'python' for x in b.text.splitlines()]
    imports = [x for x in lines if x.startswith('from mmdet_sssd')]
    assert imports
    exec('\n'.join(imports), {})


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
