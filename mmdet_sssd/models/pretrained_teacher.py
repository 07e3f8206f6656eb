from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import mmengine.hub
import torch
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from mmengine.runner import CheckpointLoader
from mmengine.structures import InstanceData
from torch import Tensor

from ..errors import ConfigError, within
from ..state_dicts import misfit, student_weights
from .building import is_config_of
from .dense_head import HeadRecord, outputs_from_feats
from .replay import DetectorOutputs, fresh_samples, given_feats
from .student import check_scope, deployed_model
from .teachers import Teacher


class DetectorTeacher(Teacher):
    """A detector that sees the student's images, in eval mode and without gradient.

    Args:
        detector: The detector.
    """

    def __init__(self, detector: BaseDetector) -> None:
        super().__init__()
        self.detector = detector.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> 'DetectorTeacher':
        """Stay in eval mode."""
        return super().train(False)

    def init_weights(self) -> None:
        """Keep the detector's weights."""

    @torch.no_grad()
    def forward(
        self,
        student: BaseDetector,
        outputs: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> DetectorOutputs:
        """Run the detector on the student's images; see the base class."""
        feats = self._extract_feat(self.prepare(batch_inputs, batch_data_samples))
        return outputs_from_feats(self.detector, feats, self.needs_head)

    @torch.no_grad()
    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[DetectorOutputs, list[InstanceData]]:
        """Compute the detector's outputs and predictions in one run.

        Under AMP the head runs in full precision, for NMS and exact boxes.

        Args:
            batch_inputs: As for :meth:`forward`.
            batch_data_samples: As for :meth:`forward`; labels are not used.

        Returns:
            The outputs, and predictions for the B images in pixels of ``batch_inputs``.
        """
        images = self.prepare(batch_inputs, batch_data_samples)
        feats = tuple(x.to(images.dtype) for x in self._extract_feat(images))
        samples = fresh_samples(batch_data_samples)
        for sample in samples:
            sample.set_metainfo(dict(flip=False))  # boxes and masks stay in these pixels
            if 'border' not in sample:  # CenterNet's test pipeline says where the image is
                height, width = sample.get('img_shape', images.shape[2:])[:2]
                sample.set_metainfo(dict(border=(0, height, 0, width)))
        full_precision = torch.autocast(images.device.type, enabled=False)
        record = HeadRecord(self.detector) if self.needs_head else None
        with given_feats(self.detector, feats), record or nullcontext(), full_precision:
            found = self.detector.predict(images, samples, rescale=False)
        outputs = record.outputs(feats) if record else DetectorOutputs(feats)
        return outputs, [sample.pred_instances for sample in found]

    def _extract_feat(self, images: Tensor) -> Sequence[Tensor]:
        try:
            return self.detector.extract_feat(images)
        except RuntimeError as error:
            height, width = images.shape[2:]
            if isinstance(error, torch.OutOfMemoryError) or height % 32 == width % 32 == 0:
                raise
            raise ConfigError(
                f'the teacher, a {type(self.detector).__name__}, fails on images of {height}×{width} '
                f'pixels ({error}); if it needs multiples of 32, pad them: '
                'model.student.data_preprocessor.pad_size_divisor=32'
            ) from error

    def prepare(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Convert the student's images of shape (B, 3, H, W) for the detector."""
        return batch_inputs


class FixedWeights:
    """Mixin of teachers whose weights are read when training begins, and kept out of checkpoints.

    Subclasses define :meth:`read_weights`. Inference does not need the weights.

    Attributes:
        is_loaded: Whether the weights have been read.
    """

    is_loaded = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_state_dict_post_hook(_without_weights)

    def train(self, mode: bool = True) -> 'FixedWeights':
        """Stay in eval mode."""
        return super().train(False)

    def read_weights(self) -> None:
        """Read the weights.

        Raises:
            ConfigError: if they cannot be found, or are another model's.
        """
        raise NotImplementedError

    def load_weights(self) -> None:
        """Read the weights on the first call."""
        if not self.is_loaded:
            self.read_weights()
            self.is_loaded = True

    def init_weights(self) -> None:
        """Read the weights before training."""
        self.load_weights()

    def probe(self, *args: Any) -> DetectorOutputs:
        """Run without the weights; see :meth:`Teacher.probe`."""
        was_loaded, self.is_loaded = self.is_loaded, True
        try:
            return super().probe(*args)
        finally:
            self.is_loaded = was_loaded

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Keep the present weights."""
        for name, child in self.named_children():
            state_dict.update(child.state_dict(prefix=f'{prefix}{name}.'))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _without_weights(_teacher: Teacher, state_dict: dict, prefix: str, _metadata: dict) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]


@MODELS.register_module()
class PretrainedTeacher(FixedWeights, DetectorTeacher):
    """A trained detector with fixed weights.

    Its weights are read when training begins; checkpoints leave them out.

    Args:
        student: The built student; the distiller passes it. If its data preprocessor differs from
            the teacher's, images are converted to the teacher's normalisation and padding.
        config: Path of the teacher's config, ``mmdet::NAME`` for one of mmdet's, or its model config
            as a dict. A distiller's config stands for its student.
        checkpoint: Path or URL of the weights, from a stock or a distilled run. None leaves them
            random, for tests.

    Attributes:
        detector: The detector.
        classes: Names of its classes, if the checkpoint that was read has them.

    Raises:
        ConfigError: if ``config`` cannot be read or its detector cannot be a teacher.
    """

    def __init__(self, student: BaseDetector, config: str | dict, checkpoint: str | None) -> None:
        super().__init__(_build(config))
        self.checkpoint = checkpoint
        self.is_loaded = checkpoint is None
        self.classes: Sequence[str] | None = None
        with within('config'):
            self.convert = ImageConversion(
                student.data_preprocessor, self.detector.data_preprocessor
            )

    def prepare(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Convert images of shape (B, 3, H, W) for the teacher, whose weights are read if needed."""
        self.load_weights()
        return self.convert(batch_inputs, batch_data_samples)

    def read_weights(self) -> None:
        """Read the checkpoint; see the base class."""
        try:
            checkpoint = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        except (ConfigError, FileNotFoundError) as error:
            raise ConfigError(f'is {self.checkpoint!r}: {error}', 'checkpoint') from error
        weights = checkpoint.get('state_dict', checkpoint)
        weights = student_weights(weights) or weights
        if problem := self._load(weights):
            raise ConfigError(
                f"is {self.checkpoint!r}, which does not fit the teacher's config: {problem}; give the "
                'checkpoint of a run with that config',
                'checkpoint',
            )
        self.classes = (checkpoint.get('meta', {}).get('dataset_meta') or {}).get('classes')

    def _load(self, weights: Mapping[str, Tensor]) -> str:
        """Load weights, which heads may rename if they are old, and say what does not fit."""
        own = self.detector.state_dict()
        try:
            missing, unknown = self.detector.load_state_dict(weights, strict=False)
        except RuntimeError:  # of another shape
            return misfit(own, weights)
        unknown = [
            key for key in unknown if key.startswith(('backbone.', 'neck.'))
        ]  # others: masks
        foreign = f"{unknown[0]} in it is none of the detector's" if unknown else ''
        return misfit({key: own[key] for key in missing}, {}) or foreign


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

    Raises:
        ConfigError: if one of them does not say how images are normalised.
    """

    def __init__(self, own: ImgDataPreprocessor, wanted: ImgDataPreprocessor) -> None:
        mean, std = _normalization(own, 'model.student.data_preprocessor')
        wanted_mean, wanted_std = _normalization(wanted, 'data_preprocessor')
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


def _normalization(preprocessor: BaseDataPreprocessor, key: str) -> tuple[Tensor, Tensor]:
    """Read mean and standard deviation of shape (3, 1, 1), in the model's channel order."""
    if not isinstance(preprocessor, ImgDataPreprocessor):
        raise ConfigError(
            f'is a {type(preprocessor).__name__}, which does not say how images are normalised; '
            'accepted: a DetDataPreprocessor',
            key,
        )
    if not preprocessor._enable_normalize:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return preprocessor.mean.cpu().expand(3, 1, 1), preprocessor.std.cpu().expand(3, 1, 1)
