from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..errors import ConfigError


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Trains in automatic mixed precision on a CPU, where mmengine's ``AmpOptimWrapper`` needs a GPU.

    It uses bfloat16, which has float32's range and needs no loss scale. mmcv's CPU operators lack it,
    so detectors that use one in training, such as R-CNNs in their RPN, are not supported.

    Args:
        kwargs: As for :class:`mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the model's forward in mixed precision; see the base class.

        Raises:
            ConfigError: if an operator of the detector lacks bfloat16.
        """
        try:
            with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
                yield
        except RuntimeError as error:
            if 'BFloat16' not in str(error):
                raise
            raise ConfigError(
                f'this detector has an operator without bfloat16 on a CPU ({error}); accepted: '
                'training without --amp, or on a GPU'
            ) from error


def amp_where_it_runs(cfg: Config) -> None:
    """Make a config's mixed precision work on a CPU, in place.

    Args:
        cfg: Config of a run.

    Raises:
        ConfigError: if the config asks for a type other than bfloat16 on a CPU.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') != 'AmpOptimWrapper' or get_device() != 'cpu':
        return
    dtype = wrapper.pop('dtype', 'bfloat16')
    if dtype != 'bfloat16':
        raise ConfigError(
            f'is {dtype!r}, and there is no GPU; accepted on a CPU: bfloat16', 'optim_wrapper.dtype'
        )
    wrapper.pop('loss_scale', None)
    wrapper.type = 'CpuAmpOptimWrapper'
