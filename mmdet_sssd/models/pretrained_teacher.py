from contextlib import suppress
from typing import Any

import mmengine.hub
import torch
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import Config, ConfigDict
from mmengine.model import ImgDataPreprocessor
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..errors import ConfigError, within
from .building import is_config_of
from .replay import DetectorOutputs
from .student import check_scope, deployed_model
from .teachers import DetectorTeacher


@MODELS.register_module()
class PretrainedTeacher(DetectorTeacher):
    """A trained detector with fixed weights.

    Its weights are loaded when training begins, so inference does not need them; checkpoints leave
    them out unless ``in_checkpoint``.

    Args:
        student: The built student; the distiller passes it. If its data preprocessor differs from
            the teacher's, images are converted to the teacher's normalisation and padding.
        config: Path of the teacher's config, ``mmdet::NAME`` for one of mmdet's, or its model config
            as a dict. A distiller's config stands for its student.
        checkpoint: Path or URL of the weights, from a stock or a distilled run. None leaves them
            random, for tests.
        in_checkpoint: Whether the run's checkpoints include these weights, so that it resumes without
            the teacher's file. Defaults to False.

    Attributes:
        detector: The detector.

    Raises:
        ConfigError: if ``config`` cannot be read or its detector cannot be a teacher.
    """

    def __init__(
        self,
        student: BaseDetector,
        config: str | dict,
        checkpoint: str | None,
        in_checkpoint: bool = False,
    ) -> None:
        super().__init__(_build(config))
        self.checkpoint = checkpoint
        self.in_checkpoint = in_checkpoint
        self.is_loaded = checkpoint is None
        own = self.detector.data_preprocessor
        self.convert = ImageConversion(student.data_preprocessor, own)
        self._register_state_dict_hook(_without_weights)

    def init_weights(self) -> None:
        """Load the checkpoint before training, unless a resumed one may contain the weights."""
        if not self.in_checkpoint:
            self.load_weights()

    def prepare(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Load the weights if needed, and convert images of shape (B, 3, H, W) for the teacher."""
        self.load_weights()
        return self.convert(batch_inputs, batch_data_samples)

    def probe(self, *args: Any) -> DetectorOutputs:
        """Run without the checkpoint; see the base class."""
        was_loaded, self.is_loaded = self.is_loaded, True
        try:
            return super().probe(*args)
        finally:
            self.is_loaded = was_loaded

    def load_weights(self) -> None:
        """Load the checkpoint on the first call.

        Raises:
            ConfigError: if it cannot be found or read, or lacks weights of the teacher.
        """
        if self.is_loaded:
            return
        try:
            checkpoint = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        except (ConfigError, FileNotFoundError) as error:
            raise ConfigError(f'is {self.checkpoint!r}: {error}', 'checkpoint') from error
        weights = checkpoint.get('state_dict', checkpoint)
        student = {k[len('student.') :]: x for k, x in weights.items() if k.startswith('student.')}
        weights, own = student or weights, self.detector.state_dict()
        missing = [k for k, x in own.items() if k not in weights or weights[k].shape != x.shape]
        if missing:
            raise ConfigError(
                f"is {self.checkpoint!r}, which does not fit the teacher's config: {len(missing)} of "
                f'its {len(own)} weights are missing or have another shape, such as {missing[0]}; give '
                'the checkpoint of a run with that config',
                'checkpoint',
            )
        self.detector.load_state_dict(weights, strict=False)
        self.is_loaded = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Load the weights if the state dict has them, else keep the present ones."""
        if any(key.startswith(prefix) for key in state_dict):
            self.is_loaded = True
        else:
            state_dict.update(self.detector.state_dict(prefix=f'{prefix}detector.'))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _without_weights(
    teacher: PretrainedTeacher, state_dict: dict, prefix: str, _metadata: dict
) -> None:
    """Remove the weights from a state dict, or load them first if ``in_checkpoint``."""
    own = [key for key in state_dict if key.startswith(prefix)]
    if not teacher.in_checkpoint:
        for key in own:
            del state_dict[key]
    elif not teacher.is_loaded:  # the state dict shares their memory
        with suppress(
            ConfigError
        ):  # a resumed run's checkpoint has them; else the first step raises it
            teacher.load_weights()


def _build(config: str | dict) -> BaseDetector:
    model = config if isinstance(config, dict) else _read(config)
    if is_config_of(model, BaseDetector) and 'student' in model:
        model = deployed_model(dict(model=model))
    if not isinstance(model, dict) or 'type' not in model:
        raise ConfigError(f'is {config!r}; accepted: the config of a detector', 'config')
    with within('config'):
        check_scope(model)
    return MODELS.build(ConfigDict(model))  # two-stage detectors read attributes


def _read(name: str) -> dict:
    try:
        config = mmengine.hub.get_config(name) if '::' in name else Config.fromfile(name)
    except Exception as error:
        raise ConfigError(
            f'is {name!r}, which cannot be read ({type(error).__name__}: {error}); accepted: the path '
            'of a config, or mmdet::FOLDER/NAME.py',
            'config',
        ) from error
    return deployed_model(config)


class ImageConversion:
    """Converts images from one detector's normalisation and padding to another's.

    Args:
        own: The data preprocessor of the images.
        wanted: The other one.
    """

    def __init__(self, own: ImgDataPreprocessor, wanted: ImgDataPreprocessor) -> None:
        (mean, std), (wanted_mean, wanted_std) = _normalization(own), _normalization(wanted)
        self.flip = own._channel_conversion != wanted._channel_conversion
        if self.flip:
            mean, std = mean.flip(0), std.flip(0)
        self.scale, self.shift = std / wanted_std, (mean - wanted_mean) / wanted_std
        self.pad_value = wanted.pad_value
        alike = torch.equal(mean, wanted_mean) and torch.equal(std, wanted_std)
        self.is_needed = self.flip or not alike or own.pad_value != wanted.pad_value

    def __call__(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Convert images of shape (B, 3, H, W)."""
        if not self.is_needed:
            return batch_inputs
        images = batch_inputs.flip(1) if self.flip else batch_inputs
        images = images * self.scale.to(images) + self.shift.to(images)
        inside = torch.zeros_like(images[:, :1], dtype=torch.bool)
        for mask, sample in zip(inside, batch_data_samples, strict=True):
            height, width = sample.get('img_shape', images.shape[2:])[:2]
            mask[:, :height, :width] = True
        return images.where(inside, self.pad_value)


def _normalization(preprocessor: ImgDataPreprocessor) -> tuple[Tensor, Tensor]:
    """Read mean and standard deviation of shape (3, 1, 1), in the model's channel order."""
    if not preprocessor._enable_normalize:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return preprocessor.mean.cpu().expand(3, 1, 1), preprocessor.std.cpu().expand(3, 1, 1)
