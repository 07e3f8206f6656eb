from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from .work import join_group


@pytest.fixture(scope='module')
def on_two_processes(tmp_path_factory):
    """Two processes of one gloo group; calls a function of `work` on both, gives both results."""
    store = tmp_path_factory.mktemp('group') / 'store'
    ranks = [
        ProcessPoolExecutor(1, get_context('spawn'), join_group, (rank, str(store)))
        for rank in range(2)
    ]

    def run(function, *args_of_ranks):
        jobs = [
            rank.submit(function, *args) for rank, args in zip(ranks, args_of_ranks, strict=True)
        ]
        return [job.result() for job in jobs]

    yield run
    for rank in ranks:
        rank.shutdown(cancel_futures=True)
