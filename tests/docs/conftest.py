import importlib
import re

import pytest

from .blocks import blocks_of

EXTENSIONS = {
    named[1]: block.text
    for block in blocks_of('docs/extending.md')
    if (named := re.match(r'# (\w+)\.py\n', block.text))
}
"""The files on the page, by name."""


@pytest.fixture(scope='session')
def extensions(tmp_path_factory):
    """Import them as a config's ``custom_imports`` does."""
    folder = tmp_path_factory.mktemp('extensions')
    for name, text in EXTENSIONS.items():
        (folder / f'{name}.py').write_text(text, encoding='utf-8')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name in EXTENSIONS:
            importlib.import_module(name)
        yield
