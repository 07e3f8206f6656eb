"""Studies pooled: pairs of detector and data set count alike, and their spread is in the interval."""

import numpy as np
import pytest
from scipy import stats

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.pool import over_pairs, pool, write_pool

from .synthetic import folder_of, results


@pytest.fixture
def studies(tmp_path):
    found = {
        'a': results(baseline=[40.0, 42.0], sssd=[41.0, 43.4], lgd=[40.0, 41.0]),
        'b': results(baseline=[20.0, 20.0, 21.0], sssd=[19.0, 19.1, 19.9]),
        'c': results(baseline=[30.0], sssd=[33.0], lgd=[31.0], only_here=[1.0]),
    }
    return [folder_of(tmp_path / name, x).path for name, x in found.items()]


def test_each_pair_counts_alike(studies):
    pooled = pool(studies, 'val')
    assert set(pooled) == {'sssd', 'lgd'}  # of an arm in one study there is nothing to pool
    means = [1.2, -1.0, 3.0]
    found = over_pairs(pooled['sssd'])
    low, high = stats.ttest_1samp(means, 0).confidence_interval()
    np.testing.assert_allclose((found.mean, found.low, found.high), (np.mean(means), low, high))
    assert found.count == 3
    assert over_pairs(pooled['lgd']).mean == pytest.approx((-0.5 + 1) / 2)


def test_report(studies, tmp_path):
    text = write_pool(tmp_path / 'out', studies, references=['baseline', 'lgd'])
    assert '| b | -1.0 [-1.2, -0.8] (n=3), ×1.00 | – |' in text
    assert '| +1.1 [-3.9, +6.0] (n=3) |' in text
    assert 'difference to lgd' in text
    assert (tmp_path / 'out/pool.md').read_text() == text


def test_what_cannot_be_pooled(studies, tmp_path):
    with pytest.raises(ConfigError, match=r'no results in .*empty'):
        pool([*studies, tmp_path / 'empty'], 'val')
    with pytest.raises(ConfigError, match='different names'):
        pool([studies[0], studies[0]], 'val')
    with pytest.raises(ConfigError, match='no arm shares a seed with sssd_all'):
        write_pool(tmp_path, studies, references=['sssd_all'])
