import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.models.utils import rename_loss_dict, reweight_loss_dict
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from mmengine.logging import print_log
from torch import Tensor

from ...errors import ConfigError
from ..layers import as_levels, instance_norm
from ..losses import FeatureLoss
from .replay import fresh_samples, replay_features, untouched_heads
from .student import build_student, count_classes, read_channels

OUR_PREFIXES = ('student.', 'teacher.', 'adapter.')


@MODELS.register_module()
class SSSDDistiller(BaseDetector):
    r"""Trains a detector, the student, together with an implicit teacher that it learns from.

    .. math:: L = L_{det}(x) + w \, L_{det}(t) + \lambda \, L_{distill}(A(x), t)

    with the student's features x, the teacher's features t (made from x and the labels), and the
    adapter A. Both detection losses are the student's own: its ``loss`` is replayed on the teacher's
    features. In :math:`L_{distill}` both sides are instance-normalised and the teacher's is detached.
    Inference is the student's alone.

    Sources: SSSD (https://arxiv.org/abs/2303.05015); with ``NormedMSELoss`` and constant λ it is LGD
    (https://arxiv.org/abs/2109.11496).

    The log has the student's losses under their own names, the teacher's with the prefix
    ``teacher.``, ``loss_distill``, which includes λ, and, not part of the sum, ``distill_distance.p``
    of each feature level p, which does not. The state dict is ``student.*``,
    ``teacher.*`` and ``adapter.*``; a stock detector's state dict loads into the student.
    Attributes that this class lacks (``bbox_head``, ``with_rpn`` …) are the student's.

    Args:
        student: Config of any detector whose ``loss`` runs on what ``extract_feat`` returns.
        teacher: Config of the teacher; ``type`` defaults to ``'LabelEncoderTeacher'``,
            ``in_channels`` and ``num_classes`` are read off the student.
        adapter: Config of the adapter; ``type`` defaults to ``'FeatureAdapter'``, ``in_channels`` is
            read off the student.
        distill_loss: Config of the loss between two pyramids, a ``FeatureLoss``; ``type`` defaults
            to ``'JSDistanceLoss'``.
        distill_coef: λ, >= 0; hooks may change it during training. Defaults to 1.
        teacher_loss_weight: w, >= 0. With 0 the teacher is not trained at all (for experiments).
            Defaults to 1.
        data_preprocessor: Only for runners that hand a top-level ``data_preprocessor`` to the model:
            it goes to a student that has none. Otherwise the student's is used.
        init_cfg: As in mmengine.
        **unknown: Refused with a sentence that says where the key belongs.

    Attributes:
        distill_coef: λ as it is now.
        detach_student: Whether the student's features are detached in the distillation loss, so that
            it trains the adapter only (the first phase of training).
        num_dropped_boxes: How many labelled boxes were left out because they cover less than a pixel
            of the image; stock losses are not finite on some of them.

    Raises:
        ConfigError: if an argument is not one of these, or the student is no detector that can be
            distilled; the message names the key.
    """

    def __init__(
        self,
        student: ConfigType,
        teacher: OptConfigType = None,
        adapter: OptConfigType = None,
        distill_loss: OptConfigType = None,
        distill_coef: float = 1.0,
        teacher_loss_weight: float = 1.0,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
        **unknown: Any,
    ) -> None:
        _check_none_unknown(unknown, type(self))
        _check_not_negative('model.distill_coef', distill_coef)
        _check_not_negative('model.teacher_loss_weight', teacher_loss_weight)
        built_student = build_student(student, data_preprocessor)
        super().__init__(data_preprocessor=built_student.data_preprocessor, init_cfg=init_cfg)
        self.student = built_student
        with _own_random_numbers():
            self.teacher, self.adapter = self._build_teacher_and_adapter(teacher, adapter)
        self.distill_loss = _build_distill_loss(distill_loss)
        self.teacher.requires_grad_(teacher_loss_weight > 0)
        self.teacher_loss_weight = teacher_loss_weight
        self.distill_coef = float(distill_coef)
        self.detach_student = False
        self.num_dropped_boxes = 0

    def _build_teacher_and_adapter(
        self, teacher: OptConfigType, adapter: OptConfigType
    ) -> tuple[nn.Module, nn.Module]:
        """Build them with what is read off the student, and refuse what disagrees with that.

        With channels given for both, the student is not run: it may be one that needs a GPU.
        """
        given = [
            config['in_channels']
            for config in (teacher, adapter)
            if 'in_channels' in (config or {})
        ]
        channels = as_levels(given[0]) if len(given) == 2 else read_channels(self.student)
        teacher = {'type': 'LabelEncoderTeacher', 'in_channels': channels, **(teacher or {})}
        adapter = {'type': 'FeatureAdapter', 'in_channels': channels, **(adapter or {})}
        for key, config in (('teacher', teacher), ('adapter', adapter)):
            if set(as_levels(config['in_channels'])) != set(channels):
                raise ConfigError(
                    f'model.{key}.in_channels is {config["in_channels"]}, but the feature levels of '
                    f'model.student have {[*channels]} channels; leave it out to read it off the '
                    'student'
                )
        if 'num_classes' not in teacher:
            teacher['num_classes'] = count_classes(self.student)
        return MODELS.build(teacher), MODELS.build(adapter)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'student':  # not built yet
                raise
            return getattr(self.student, name)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """Compute the losses of student and teacher and the distillation loss.

        Args:
            batch_inputs: Images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples with ground truth.

        Returns:
            The student's losses, ``teacher.*``, ``loss_distill`` and ``distill_distance.*``.
        """
        student_samples = self._without_degenerate_boxes(batch_data_samples)
        teacher_samples = fresh_samples(student_samples)
        student_feats = self.student.extract_feat(batch_inputs)
        with replay_features(self.student, student_feats):
            losses = self.student.loss(batch_inputs, student_samples)
        repeats = len(student_feats[0]) // len(teacher_samples)  # 3 in TridentNet's training
        teacher_feats = self.teacher(student_feats, batch_inputs, teacher_samples * repeats)
        if self.teacher_loss_weight > 0:
            losses.update(self._teacher_loss(teacher_feats, batch_inputs, teacher_samples))
        losses.update(self._distill_loss(student_feats, teacher_feats))
        return losses

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs) -> SampleList:
        """Predict with the student alone; see its ``predict``."""
        return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def predict_with_teacher(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs
    ) -> SampleList:
        """Predict with the student's head on the teacher's features, which are made from the labels.

        What comes of it tells what the teacher knows, and is no prediction: it has seen the answer.

        Args:
            batch_inputs: Images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples with ``gt_instances`` in input pixels.
            **kwargs: As the student's ``predict`` takes them.

        Returns:
            The data samples with ``pred_instances``, as the student's ``predict`` returns them.
        """
        student_feats = self.student.extract_feat(batch_inputs)
        repeats = len(student_feats[0]) // len(
            batch_data_samples
        )  # 3 in some of TridentNet's tests
        teacher_feats = self.teacher(student_feats, batch_inputs, batch_data_samples * repeats)
        with replay_features(self.student, teacher_feats):
            return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Any:
        return self.student._forward(batch_inputs, batch_data_samples)

    def extract_feat(self, batch_inputs: Tensor) -> Sequence[Tensor]:
        """Extract the student's features, one map of shape (B, C, h, w) per level."""
        return self.student.extract_feat(batch_inputs)

    def _teacher_loss(
        self, teacher_feats: Sequence[Tensor], batch_inputs: Tensor, samples: SampleList
    ) -> dict[str, Any]:
        """Compute the student's loss on the teacher's features, leaving no trace in the student."""
        with replay_features(self.student, teacher_feats), untouched_heads(self.student):
            losses = self.student.loss(batch_inputs, samples)
        if self.teacher_loss_weight != 1:
            losses = reweight_loss_dict(losses, self.teacher_loss_weight)
        return rename_loss_dict('teacher.', losses)

    def _distill_loss(
        self, student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Compare adapted student and detached teacher features; λ is in the loss only."""
        if self.detach_student:
            student_feats = [x.detach() for x in student_feats]
        adapted = [instance_norm(x) for x in self.adapter(student_feats)]
        target = [instance_norm(x.detach()) for x in teacher_feats]
        distances = self.distill_loss.level_distances(adapted, target)
        logged = {f'distill_distance.{i}': x for i, x in enumerate(distances.detach())}
        return {
            'loss_distill': self.distill_coef * self.distill_loss.average(distances, adapted),
            **logged,
        }

    def _without_degenerate_boxes(self, batch_data_samples: SampleList) -> SampleList:
        """Leave out the labelled objects whose box covers less than a pixel of its image.

        One answer is read from the device for the whole batch, before anything of the step is
        queued there.
        """
        boxes = [get_box_tensor(sample.gt_instances.bboxes) for sample in batch_data_samples]
        kept = [
            _covers_a_pixel(x, sample.get('img_shape', None))
            for x, sample in zip(boxes, batch_data_samples, strict=True)
        ]
        flags = torch.cat(kept).cpu()
        if flags.all():
            return batch_data_samples
        samples = fresh_samples(batch_data_samples)
        for sample, keep in zip(samples, kept, strict=True):
            sample.gt_instances = sample.gt_instances[keep]
        self._count_dropped_boxes(int((~flags).sum()), len(flags), samples)
        return samples

    def _count_dropped_boxes(self, num_dropped: int, num_boxes: int, samples: SampleList) -> None:
        """Count the boxes that are left out, and say so the first time."""
        if not self.num_dropped_boxes:
            images = [s.metainfo['img_path'] for s in samples if s.metainfo.get('img_path')]
            print_log(
                f'{num_dropped} of the {num_boxes} labelled boxes of a batch cover less than a pixel '
                'of their image after the training pipeline; such boxes are left out of training '
                f'and this is said once. The images of the batch: {", ".join(images) or "unnamed"}.',
                logger='current',
                level=logging.WARNING,
            )
        self.num_dropped_boxes += num_dropped

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take a stock detector's state dict as the student's.

        Raises:
            ConfigError: if it has weights of a distiller and of a stock detector, or is a stock
                detector's of which nothing fits the student.
        """
        own = {f'{prefix}{key}' for key in self.state_dict()}
        stock = {key for key in state_dict if f'{prefix}student.{key[len(prefix) :]}' in own}
        ours = [key for key in state_dict if key.startswith(OUR_PREFIXES, len(prefix))]
        if stock and ours:
            raise ConfigError(
                f'a checkpoint has weights of a distiller ({ours[0]}) and of a stock detector '
                f'({min(stock)}); remove those of one of them'
            )
        if state_dict and not (stock or ours):
            raise ConfigError(
                f'none of the {len(state_dict)} weights of a checkpoint is one of model.student, a '
                f'{type(self.student).__name__}: it has {min(state_dict)}, model.student has '
                f'{min(self.student.state_dict())}. Weights of a backbone alone are set by '
                'model.student.backbone.init_cfg=dict(type="Pretrained", checkpoint=…)'
            )
        if not ours:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                state_dict[f'{prefix}student.{key[len(prefix) :]}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check_none_unknown(unknown: dict[str, Any], distiller: type) -> None:
    if unknown:
        accepted = [x for x in inspect.signature(distiller).parameters if x != 'unknown']
        raise ConfigError(
            f'model.{next(iter(unknown))} is no setting of {distiller.__name__}; if it is one of the '
            f"detector's, write model.student.{next(iter(unknown))}. Accepted: {', '.join(accepted)}"
        )


def _build_distill_loss(config: OptConfigType) -> FeatureLoss:
    loss = MODELS.build({'type': 'JSDistanceLoss', **(config or {})})
    if not isinstance(loss, FeatureLoss):
        raise ConfigError(
            f'model.distill_loss.type is {type(loss).__name__}, which does not compare feature levels; '
            'accepted: JSDistanceLoss, NormedMSELoss, SSIMLoss, or a FeatureLoss of your own'
        )
    return loss


def _check_not_negative(key: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f'{key} is {value!r}; accepted: a number >= 0')


def is_distiller(model: ConfigType) -> bool:
    """Tell by a model's config whether it is a distiller; ``type`` may be a name or a class."""
    cls = model.get('type')
    if isinstance(cls, str):
        cls = MODELS.get(cls)
    return isinstance(cls, type) and issubclass(cls, SSSDDistiller)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Draw from a stream of its own, so that the student is initialised as it would be alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch.initial_seed() + 1)
        yield


def _covers_a_pixel(boxes: Tensor, img_shape: tuple[int, int] | None) -> Tensor:
    """Tell which boxes of shape (n, 4) have a width and height of a pixel or more in the image."""
    height, width = img_shape or (math.inf, math.inf)
    x1, y1 = boxes[:, 0].clamp(min=0), boxes[:, 1].clamp(min=0)
    x2, y2 = boxes[:, 2].clamp(max=width), boxes[:, 3].clamp(max=height)
    return (x2 - x1 >= 1) & (y2 - y1 >= 1)
