import copy

import pytest
from mmengine.config import ConfigDict

from mmdet_sssd.config_tree import (
    DROPPED,
    nested_configs,
    overridden,
    overrides,
    rewritten,
    value_at,
)

CONFIG = dict(
    type='A', heads=[dict(type='B', num=1), dict(type='C')], steps=(dict(x=dict(y=2)),), none=None
)


def test_every_dict_is_met_with_its_key_the_outer_ones_first():
    found = dict(nested_configs(CONFIG, 'model'))
    assert list(found) == [
        'model',
        'model.heads.0',
        'model.heads.1',
        'model.steps.0',
        'model.steps.0.x',
    ]
    assert all(value_at(dict(model=CONFIG), key) is value for key, value in found.items())
    assert [key for key, _ in nested_configs(CONFIG['heads'])] == ['0', '1']
    assert [key for key, _ in nested_configs(CONFIG, into=('steps',))] == ['', 'steps.0']
    for empty in (None, 'text', [], [1, None]):
        assert not list(nested_configs(empty))


def test_a_dict_can_be_changed_as_it_is_met():
    config = ConfigDict(a=dict(gone=1, kept=[dict(gone=2)]))
    for _, part in nested_configs(config):
        part.pop('gone', None)
    assert config == dict(a=dict(kept=[dict()]))


def test_a_key_that_is_not_there_has_no_value():
    assert value_at(CONFIG, 'heads.1.type') == 'C'
    for key in ('no', 'no.such.key', 'type.of.text', 'none.x', 'heads.2', 'heads.x'):
        assert value_at(CONFIG, key) is None


def test_a_rewritten_tree_loses_dropped_values_and_emptied_containers():
    config = ConfigDict(a=[1, (2, 1)], b=dict(c=[1]), empty=[], d=dict(x=1, y=3))
    ours = rewritten(config, lambda x: DROPPED if x == 1 else x)
    assert ours == dict(a=[(2,)], empty=[], d=dict(y=3))
    assert type(ours['d']) is dict
    assert config.b == dict(c=[1])


def test_a_dict_is_rewritten_after_its_values():
    def change(value):
        return value['x'] if isinstance(value, dict) and 'x' in value else value

    assert rewritten(dict(a=dict(x=dict(x=[1]))), change) == dict(a=[1])


@pytest.mark.parametrize(
    ('base', 'config', 'changes'),
    [
        (dict(a=1), dict(a=1), {}),
        (dict(a=1), dict(b=None, a=2), dict(a=2, b=None)),
        (dict(a=1, b=2, c=3), dict(b=2), dict(_removed_=['a', 'c'])),
        (dict(a=dict(x=dict(y=1), z=[1])), dict(a=dict(x={}, z=[2])), None),
        (dict(a=dict(x=1)), dict(a=[1]), dict(a=[1])),
        (dict(a=3), dict(a=dict(x=1)), dict(a=dict(x=1))),
        ({'a.b': 1, 'a': dict(b=1)}, {'a.b': 2, 'a': dict(b=1)}, {'a.b': 2}),
    ],
)
def test_overrides_make_one_config_of_another(base, config, changes):
    given = copy.deepcopy(base)
    found = overrides(base, config)
    assert changes is None or found == changes
    assert overridden(base, found) == config
    assert base == given
