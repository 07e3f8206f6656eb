from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.models import BaseDetector, DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from torch import Tensor

from ..config_tree import starts_pretrained
from ..errors import ConfigError, check, did_you_mean
from .pretrained_teacher import FixedWeights, ImageConversion
from .replay import DetectorOutputs
from .teachers import Teacher

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRECISIONS = {None: None, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


@MODELS.register_module()
class BackboneTeacher(FixedWeights, Teacher):
    """A fixed image backbone, such as DINOv3's, as a teacher of features.

    It sees the student's images, converted to its own normalisation and resized to whole patches. Its
    weights are loaded when training begins; checkpoints leave them out. After RT-DETRv4
    (https://arxiv.org/abs/2510.25257), whose detectors learn from a frozen DINOv3.

    Args:
        student: The built student; the distiller passes it.
        backbone: Name of a model of timm, such as ``'vit_small_patch16_dinov3.lvd1689m'``, or the
            config of a backbone that mmdet builds: mmdet's, or your own around another library. It
            returns maps of shape (B, C, h, w).
        checkpoint: File of the weights of a model of timm. ``'default'``: those that timm downloads, or
            a config's own, by its ``init_cfg``, its class's ``init_weights`` or as it is built. None
            leaves them as built, for tests. Defaults to ``'default'``.
        mean: Mean of R, G and B, of pixels from 0 to 255. Defaults to timm's for the model, else
            ImageNet's.
        std: Standard deviation, likewise.
        multiple_of: Pixels that the sides of its images are multiples of. Defaults to the patch size
            of a model of timm, else 1.
        precision: ``'float16'`` or ``'bfloat16'`` runs it under autocast. None: as the student.
            Defaults to None.

    Raises:
        ConfigError: if timm is missing, or the backbone cannot be built or has no maps.
    """

    def __init__(
        self,
        student: BaseDetector,
        backbone: str | dict,
        checkpoint: str | None = 'default',
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        multiple_of: int | None = None,
        precision: str | None = None,
    ) -> None:
        super().__init__()
        accepted = 'float16, bfloat16 or None'
        check('precision', precision, precision in PRECISIONS, accepted)
        self.dtype = PRECISIONS[precision]
        self.config, self.checkpoint = backbone, checkpoint
        self.is_loaded = checkpoint is None
        if isinstance(backbone, dict):
            accepted = "'default' or None; init_cfg of the backbone's config names its weights"
            check('checkpoint', checkpoint, checkpoint in ('default', None), accepted)
            self.backbone = MODELS.build(backbone)
            self._check_has_weights()
        else:
            self.backbone = _timm_backbone(backbone)
        # timm's description of the weights, of the model inside or of the list of its stages
        about = getattr(self.backbone, 'pretrained_cfg', None) or {}
        mean = mean or [255 * x for x in about.get('mean', IMAGENET_MEAN)]
        std = std or [255 * x for x in about.get('std', IMAGENET_STD)]
        own = DetDataPreprocessor(mean=mean, std=std, bgr_to_rgb=True)
        self.convert = ImageConversion(student.data_preprocessor, own)
        self.multiple_of = multiple_of or _patch_size(self.backbone)
        self.requires_grad_(False).eval()

    def read_weights(self) -> None:
        """Read the weights, those of a config by its ``init_cfg``; see the base class."""
        if isinstance(self.config, dict):
            init_weights = getattr(type(self.backbone), 'init_weights', BaseModule.init_weights)
            is_own = init_weights is not BaseModule.init_weights
            # without settings, BaseModule's would initialise again what the class has loaded
            if is_own or any(getattr(x, 'init_cfg', None) for x in self.backbone.modules()):
                self.backbone.init_weights()
        else:
            file = None if self.checkpoint == 'default' else self.checkpoint
            self.backbone.load_state_dict(_timm_weights(self.config, file))

    def _check_has_weights(self) -> None:
        """Refuse a backbone of mmdet's own without trained weights."""
        is_mmdet_s = type(self.backbone).__module__.startswith('mmdet.')
        if is_mmdet_s and self.checkpoint and not starts_pretrained(ConfigDict(model=self.config)):
            raise ConfigError(
                f'is a {type(self.backbone).__name__} without trained weights; accepted: '
                "init_cfg=dict(type='Pretrained', checkpoint=…) in it, or checkpoint=None to have it "
                'random, for tests',
                'backbone',
            )

    @torch.no_grad()
    def forward(
        self,
        student: BaseDetector,
        outputs: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> DetectorOutputs:
        """Run the backbone on the student's images; see the base class."""
        self.load_weights()
        images = self.convert(batch_inputs, batch_data_samples)
        n = self.multiple_of
        size = [max(round(side / n), 1) * n for side in images.shape[2:]]
        if size != [*images.shape[2:]]:
            images = F.interpolate(images, size, mode='bilinear', align_corners=False)
        with torch.autocast(images.device.type, self.dtype) if self.dtype else nullcontext():
            feats = self.backbone(images)
        return DetectorOutputs(tuple(x.to(batch_inputs.dtype) for x in feats))

    def probe(self, *args: Any) -> DetectorOutputs:
        """Run without the weights; see the base class."""
        try:
            outputs = super().probe(*args)
            if any(x.ndim != 4 for x in outputs.feats):
                raise TypeError(f'it gives {[tuple(x.shape) for x in outputs.feats]}')
        except Exception as error:  # a model for one size of image, or without maps
            raise ConfigError(
                f'is {self.config!r}, which fails on a blank image ({type(error).__name__}: {error}); '
                'accepted: a backbone of maps (B, C, h, w) that takes images of any size',
                'backbone',
            ) from error
        return outputs


def _timm_backbone(name: str, **settings: Any) -> nn.Module:
    """Build a model of timm that returns maps, for images of any size if it can."""
    try:
        timm = import_module('timm')
    except Exception as error:  # timm needs a torchvision that fits torch
        raise ConfigError(
            f'is {name!r}, a model of timm, which cannot be imported ({error}); pip install timm, or '
            'give the config of a backbone that mmdet builds',
            'backbone',
        ) from error
    if not timm.is_model(name):
        hint = did_you_mean(str(name).partition('.')[0], timm.list_models())
        raise ConfigError(
            f'is {name!r}, which timm {timm.__version__} does not have{hint}', 'backbone'
        )
    try:
        try:
            return timm.create_model(name, features_only=True, dynamic_img_size=True, **settings)
        except TypeError:  # most but transformers take any size
            return timm.create_model(name, features_only=True, **settings)
    except Exception as error:
        raise ConfigError(
            f'is {name!r}, which timm cannot build ({type(error).__name__}: {error})', 'backbone'
        ) from error


def _timm_weights(name: str, file: str | None) -> dict[str, Tensor]:
    """Read the weights of a model of timm, converted as timm does for its own files."""
    overlay = dict(pretrained_cfg_overlay=dict(file=file)) if file else {}
    loaded, random = (
        _seeded_state(name, **settings) for settings in (dict(pretrained=True, **overlay), {})
    )
    if all(torch.equal(x, random[key]) for key, x in loaded.items()):
        raise ConfigError(f'is {file!r}, none of whose weights is one of {name}', 'checkpoint')
    return loaded


def _seeded_state(name: str, **settings: Any) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2510_25257)  # hardly the seed of the file's weights
        return _timm_backbone(name, **settings).state_dict()


def _patch_size(backbone: nn.Module) -> int:
    """Read the patch size of a vision transformer of timm's; 1 for others."""
    sizes = [x.patch_size for x in backbone.modules() if hasattr(x, 'patch_size')]
    size = sizes[0] if sizes else 1
    return size if isinstance(size, int) else max(size)
