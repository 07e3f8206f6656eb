import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from mmdet_sssd import ConfigError
from mmdet_sssd.optimizers import amp_where_it_runs, cpu_amp_optim_wrapper

from ..small_runner import draw_shapes, small_runner
from ..stock_detectors import demo_batch, stock_config

WRAPPER = dict(type='CpuAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))


def losses_and_weights(name, wrapper):
    torch.manual_seed(0)
    model = MODELS.build(dict(type='SSSDDistiller', student=stock_config(name)))
    model.init_weights()
    model.train()
    optim_wrapper = build_optim_wrapper(model, wrapper)
    data = demo_batch(model)
    torch.manual_seed(1)
    with optim_wrapper.optim_context(model):
        total, losses = model.parse_losses(model(**copy.deepcopy(data), mode='loss'))
    optim_wrapper.update_params(total)
    return losses, dict(model.named_parameters())


@pytest.mark.parametrize('name', ['retinanet', 'fcos'])
def test_a_step_is_nearly_the_one_in_full_precision(name):
    exact, before = losses_and_weights(name, dict(WRAPPER, type='OptimWrapper'))
    rough, weights = losses_and_weights(name, WRAPPER)
    for key, value in exact.items():
        torch.testing.assert_close(rough[key], value, rtol=0.05, atol=0.02, msg=key)
    assert any(not torch.equal(rough[key], value) for key, value in exact.items())
    for key, value in weights.items():
        assert value.dtype == torch.float32, key
        assert (value - before[key]).norm() <= 0.01 * before[key].norm() + 1e-3, key


def test_a_detector_without_the_operators_is_refused():
    with pytest.raises(ConfigError, match=r'an operator without bfloat16 on a CPU .*without --amp'):
        losses_and_weights('faster_rcnn', WRAPPER)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    shapes = draw_shapes(tmp_path / 'shapes')
    hooks = dict(random_state=dict(type='RandomStateHook'))
    wrapper = dict(type='CpuAmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    settings = dict(optim_wrapper=wrapper, default_hooks=hooks, val_cfg=None)
    settings |= dict(val_dataloader=None, val_evaluator=None)
    whole = small_runner(tmp_path / 'whole', shapes, **settings)
    whole.train()
    resumed = small_runner(
        tmp_path / 'resumed',
        shapes,
        resume=True,
        load_from=str(tmp_path / 'whole' / 'epoch_1.pth'),
        **settings,
    )
    resumed.train()
    expected = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


AMP = dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(type='SGD', lr=1.0))


def test_mixed_precision_on_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(cpu_amp_optim_wrapper, 'get_device', lambda: 'cpu')
    cfg = Config(dict(optim_wrapper=AMP))
    amp_where_it_runs(cfg)
    assert cfg.optim_wrapper == dict(type='CpuAmpOptimWrapper', optimizer=AMP['optimizer'])
    cfg = Config(dict(optim_wrapper=dict(AMP, dtype='float16')))
    with pytest.raises(ConfigError, match=r"^optim_wrapper\.dtype is 'float16'.*: bfloat16"):
        amp_where_it_runs(cfg)


@pytest.mark.parametrize(
    ('device', 'wrapper'), [('cuda', AMP), ('cpu', dict(type='OptimWrapper')), ('cpu', None)]
)
def test_other_configs_do_not_change(monkeypatch, device, wrapper):
    monkeypatch.setattr(cpu_amp_optim_wrapper, 'get_device', lambda: device)
    cfg = Config(dict(optim_wrapper=copy.deepcopy(wrapper)))
    amp_where_it_runs(cfg)
    assert cfg.optim_wrapper == wrapper
