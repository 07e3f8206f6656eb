import pytest

from .stock_runs import train


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    """Gives folders of runs that were left alone, each done once."""
    folders = {}

    def run(*case, **settings):
        key = (case, str(sorted(settings.items())))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp('whole')
            train(folders[key], *case, **settings)
        return folders[key]

    return run
