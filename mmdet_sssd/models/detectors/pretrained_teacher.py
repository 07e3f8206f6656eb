from contextlib import nullcontext

import mmengine.hub
import torch
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import Config, ConfigDict
from mmengine.model import ImgDataPreprocessor
from mmengine.runner import CheckpointLoader
from mmengine.structures import InstanceData
from torch import Tensor

from ...errors import ConfigError
from ..terms import DetectorOutputs
from .recorded_head import outputs_of, recorded_head
from .replay import fresh_samples, replay_features
from .student import check_scope, deployed_model

KEY = 'model.pretrained_teacher'
PREFIX = 'pretrained_teacher.'  # of its weights in a state dict


class PretrainedTeacher:
    """A trained detector that stays as it is, and sees what the student sees.

    It is no ``nn.Module``, and that is how it stays out of everything that is done to a model's
    modules: it is in no parameter group and no state dict, ``train()`` leaves it in eval mode, DDP
    does not synchronise it, and copies of the model (EMA's) share it. It follows the images from
    device to device. Its weights are loaded when training begins, so inference does without them.

    Args:
        student: The student, for its data preprocessor: images are normalised as the teacher had
            them, if that differs.
        config: Path of the teacher's config, ``mmdet::NAME`` for one of mmdet's, or the model's own
            config as a dict. A distiller's config stands for its student.
        checkpoint: Path or URL of its weights, of a stock run or of one with a distiller. None leaves
            them random, for tests.
        in_checkpoint: Whether the run's own checkpoints have its weights too, as
            ``pretrained_teacher.*``, so that they can be resumed without its file. Defaults to False.

    Attributes:
        detector: The detector.

    Raises:
        ConfigError: if there is no such config, or it is not of a detector that can be a teacher.
    """

    def __init__(
        self,
        student: BaseDetector,
        config: str | dict,
        checkpoint: str | None,
        in_checkpoint: bool = False,
    ) -> None:
        self.detector = _build(config)
        self.detector.requires_grad_(False).eval()
        self.checkpoint = checkpoint
        self.in_checkpoint = in_checkpoint
        self.is_loaded = checkpoint is None
        self.conversion = _conversion(student.data_preprocessor, self.detector.data_preprocessor)

    def __deepcopy__(self, memo: dict) -> 'PretrainedTeacher':
        return self  # one is enough for all copies of a model

    @torch.no_grad()
    def __call__(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, with_logits: bool
    ) -> DetectorOutputs:
        """Run the teacher on the student's images.

        Args:
            batch_inputs: Images of shape (B, 3, H, W), as the student's data preprocessor left them.
            batch_data_samples: Their B data samples, for the size of the images in the padding.
            with_logits: Whether its head is run too.

        Returns:
            Its feature levels, and with ``with_logits`` its classification logits.
        """
        images = self._prepare(batch_inputs, batch_data_samples)
        return outputs_of(self.detector, self.detector.extract_feat(images), with_logits)

    @torch.no_grad()
    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, with_logits: bool
    ) -> tuple[DetectorOutputs, list[InstanceData]]:
        """Run the teacher as :meth:`__call__` does, once, and take its predictions along.

        Under AMP its head runs in full precision: NMS needs it, and boxes are worth it.

        Returns:
            Its outputs, and the predictions of the B images, in pixels of ``batch_inputs``.
        """
        images = self._prepare(batch_inputs, batch_data_samples)
        feats = tuple(x.to(images.dtype) for x in self.detector.extract_feat(images))
        head = recorded_head(self.detector.bbox_head) if with_logits else nullcontext()
        full_precision = torch.autocast(images.device.type, enabled=False)
        with replay_features(self.detector, feats), head as record, full_precision:
            samples = self.detector.predict(
                images, fresh_samples(batch_data_samples), rescale=False
            )
        outputs = DetectorOutputs(feats, record.cls_scores if with_logits else None)
        return outputs, [sample.pred_instances for sample in samples]

    def _prepare(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Bring weights and detector to where the images are, and these to its normalisation."""
        self.load_weights()
        self.detector.to(batch_inputs.device)
        return self.convert(batch_inputs, batch_data_samples)

    def load_weights(self) -> None:
        """Load the checkpoint, the first time.

        Raises:
            ConfigError: if it cannot be found or read, or lacks weights of the teacher.
        """
        if self.is_loaded:
            return
        try:
            checkpoint = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        except (ConfigError, FileNotFoundError) as error:
            raise ConfigError(f'{KEY}.checkpoint: {error}') from error
        weights = checkpoint.get('state_dict', checkpoint)
        student = {k[len('student.') :]: x for k, x in weights.items() if k.startswith('student.')}
        self._take(student or weights, f'{KEY}.checkpoint={self.checkpoint}')

    def save_to(self, state_dict: dict, prefix: str) -> None:
        """Add the weights to a model's state dict, if the checkpoints are to have them."""
        if self.in_checkpoint:
            self.load_weights()
            self.detector.state_dict(destination=state_dict, prefix=f'{prefix}{PREFIX}')

    def load_from(self, state_dict: dict, prefix: str) -> None:
        """Take the weights out of a model's state dict, if they are there."""
        prefix += PREFIX
        keys = [key for key in state_dict if key.startswith(prefix)]
        weights = {key[len(prefix) :]: state_dict.pop(key) for key in keys}
        if weights:
            self._take(weights, 'the teacher in a checkpoint')

    def _take(self, weights: dict[str, Tensor], source: str) -> None:
        own = self.detector.state_dict()
        missing = [k for k, x in own.items() if k not in weights or weights[k].shape != x.shape]
        if missing:
            raise ConfigError(
                f'{source} does not fit {KEY}.config: {len(missing)} of its {len(own)} weights are '
                f'missing or of another shape, as {missing[0]}; give the checkpoint of a run with '
                'that config'
            )
        self.detector.load_state_dict(weights, strict=False)
        self.is_loaded = True

    def convert(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Normalise images of shape (B, 3, H, W) and pad them as the teacher's preprocessor does."""
        if self.conversion is None:
            return batch_inputs
        flip, scale, shift = self.conversion
        images = batch_inputs.flip(1) if flip else batch_inputs
        images = images * scale.to(images) + shift.to(images)
        inside = torch.zeros_like(images[:, :1], dtype=torch.bool)
        for mask, sample in zip(inside, batch_data_samples, strict=True):
            height, width = sample.get('img_shape', images.shape[2:])[:2]
            mask[:, :height, :width] = True
        return images.where(inside, self.detector.data_preprocessor.pad_value)


def _build(config: str | dict) -> BaseDetector:
    model = config if isinstance(config, dict) else _read(config)
    if not isinstance(model, dict) or 'type' not in model:
        raise ConfigError(f'{KEY}.config is {config!r}; accepted: the config of a detector')
    check_scope(model, KEY)
    return MODELS.build(ConfigDict(model))  # two-stage detectors read it by attributes


def _read(name: str) -> dict:
    try:
        config = mmengine.hub.get_config(name) if '::' in name else Config.fromfile(name)
    except Exception as error:
        raise ConfigError(
            f'{KEY}.config is {name!r}, which cannot be read ({type(error).__name__}: {error}); '
            'accepted: the path of a config, or mmdet::FOLDER/NAME.py'
        ) from error
    return deployed_model(config)


def _conversion(
    student: ImgDataPreprocessor, teacher: ImgDataPreprocessor
) -> tuple[bool, Tensor, Tensor] | None:
    """Work out whether to flip the channels, and a factor and summand of shape (3, 1, 1).

    None if both normalise and pad alike.
    """
    (mean, std), (teacher_mean, teacher_std) = _normalization(student), _normalization(teacher)
    flip = student._channel_conversion != teacher._channel_conversion
    if flip:
        mean, std = mean.flip(0), std.flip(0)
    alike = torch.equal(mean, teacher_mean) and torch.equal(std, teacher_std)
    if alike and not flip and student.pad_value == teacher.pad_value:
        return None
    return flip, std / teacher_std, (mean - teacher_mean) / teacher_std


def _normalization(preprocessor: ImgDataPreprocessor) -> tuple[Tensor, Tensor]:
    """Read mean and standard deviation of shape (3, 1, 1), in the order the model sees."""
    if not preprocessor._enable_normalize:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return preprocessor.mean.cpu().expand(3, 1, 1), preprocessor.std.cpu().expand(3, 1, 1)
