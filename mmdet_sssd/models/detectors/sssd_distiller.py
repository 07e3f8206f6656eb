from collections.abc import Sequence
from typing import Any

import torch.nn as nn
from mmdet.models.utils import rename_loss_dict, reweight_loss_dict
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from torch import Tensor

from ...errors import ConfigError
from ..layers import as_levels
from ..terms import DetectorOutputs, build_feature_loss, check_not_negative, feature_losses
from .distiller import Distiller, own_random_numbers
from .replay import batch_statistics, fresh_samples, replay_features, untouched_heads
from .student import count_classes, read_channels


@MODELS.register_module()
class SSSDDistiller(Distiller):
    r"""Trains a detector, the student, together with an implicit teacher that it learns from.

    .. math:: L = L_{det}(x) + w \, L_{det}(t) + \lambda \, L_{distill}(A(x), t)

    with the student's features x, the teacher's features t (made from x and the labels), and the
    adapter A. Both detection losses are the student's own: its ``loss`` is replayed on the teacher's
    features. In :math:`L_{distill}` both sides are instance-normalised and the teacher's is detached.
    Inference is the student's alone. Terms against a pretrained teacher can be added, see
    :class:`Distiller`.

    Sources: SSSD (https://arxiv.org/abs/2303.05015); with ``NormedMSELoss`` and constant λ it is LGD
    (https://arxiv.org/abs/2109.11496).

    The log has the student's losses under their own names, the teacher's with the prefix
    ``teacher.``, ``loss_distill``, which includes λ, and, not part of the sum, ``distill_distance.p``
    of each feature level p, which does not. The state dict is ``student.*``,
    ``teacher.*`` and ``adapter.*``; a stock detector's state dict loads into the student.

    Args:
        student: Config of any detector whose ``loss`` runs on what ``extract_feat`` returns.
        teacher: Config of the teacher; ``type`` defaults to ``'LabelEncoderTeacher'``,
            ``in_channels`` and ``num_classes`` are read off the student.
        adapter: Config of the adapter; ``type`` defaults to ``'FeatureAdapter'``, ``in_channels`` is
            read off the student.
        distill_loss: Config of the loss between two pyramids, a ``FeatureLoss``; ``type`` defaults
            to ``'JSDistanceLoss'``.
        distill_coef: λ, >= 0; hooks may change it during training. Defaults to the loss's
            ``default_coef``: 10 for ``JSDistanceLoss``, else 1.
        teacher_loss_weight: w, >= 0. With 0 the teacher is not trained at all (for experiments).
            Defaults to 1.
        pretrained_teacher: As in :class:`Distiller`; only with ``terms``.
        terms: As in :class:`Distiller`, beside the one of this class.
        data_preprocessor: As in :class:`Distiller`.
        init_cfg: As in mmengine.
        **unknown: Refused with a sentence that says where the key belongs.

    Attributes:
        distill_coef: λ as it is now.
        detach_student: Whether the student's features are detached in the distillation loss, so that
            it trains the adapter only (the first phase of training).

    Raises:
        ConfigError: if an argument is not one of these, or the student is no detector that can be
            distilled; the message names the key.
    """

    needs_terms = False

    def __init__(
        self,
        student: ConfigType,
        teacher: OptConfigType = None,
        adapter: OptConfigType = None,
        distill_loss: OptConfigType = None,
        distill_coef: float | None = None,
        teacher_loss_weight: float = 1.0,
        pretrained_teacher: OptConfigType = None,
        terms: dict[str, ConfigType] | None = None,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
        **unknown: Any,
    ) -> None:
        if distill_coef is not None:
            check_not_negative('model.distill_coef', distill_coef)
        check_not_negative('model.teacher_loss_weight', teacher_loss_weight)
        super().__init__(student, pretrained_teacher, terms, data_preprocessor, init_cfg, **unknown)
        with own_random_numbers():
            self.teacher, self.adapter = self._build_teacher_and_adapter(teacher, adapter)
        self.distill_loss = build_feature_loss(
            'model.distill_loss', {'type': 'JSDistanceLoss', **(distill_loss or {})}
        )
        self.teacher.requires_grad_(teacher_loss_weight > 0)
        self.teacher_loss_weight = teacher_loss_weight
        self.distill_coef = float(
            self.distill_loss.default_coef if distill_coef is None else distill_coef
        )
        self.detach_student = False

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

    def count_classes(self) -> int:
        """Read the number of classes off the teacher, which may have been given it."""
        return self.teacher.num_classes

    def predict_with_teacher(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs
    ) -> SampleList:
        """Predict with the student's head on the teacher's features, which are made from the labels.

        What comes of it tells what the teacher knows, and is no prediction: it has seen the answer.
        Batch norms of the head normalise the teacher's features by the batch, as in training.

        Args:
            batch_inputs: Images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples with ``gt_instances`` in input pixels.
            **kwargs: As the student's ``predict`` takes them.

        Returns:
            The data samples with ``pred_instances``, as the student's ``predict`` returns them.
        """
        feats = self._teacher_feats(
            self.student.extract_feat(batch_inputs), batch_inputs, batch_data_samples
        )
        with replay_features(self.student, feats), batch_statistics(self.student):
            return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def _distill_losses(
        self, student: DetectorOutputs, batch_inputs: Tensor, samples: SampleList
    ) -> dict[str, Any]:
        """Compute the teacher's losses, its distillation loss, and those of further terms."""
        losses: dict[str, Any] = {}
        teacher_feats = self._teacher_feats(student.feats, batch_inputs, samples)
        if self.teacher_loss_weight > 0:
            losses.update(self._teacher_loss(teacher_feats, batch_inputs, samples))
        losses.update(self._distill_loss(student.feats, teacher_feats))
        losses.update(super()._distill_losses(student, batch_inputs, samples))
        return losses

    def _teacher_feats(
        self, student_feats: Sequence[Tensor], batch_inputs: Tensor, samples: SampleList
    ) -> tuple[Tensor, ...]:
        repeats = len(student_feats[0]) // len(samples)  # 3 in TridentNet's training
        return self.teacher(student_feats, batch_inputs, samples * repeats)

    def _teacher_loss(
        self, teacher_feats: Sequence[Tensor], batch_inputs: Tensor, samples: SampleList
    ) -> dict[str, Any]:
        """Compute the student's loss on the teacher's features, leaving no trace in the student."""
        with replay_features(self.student, teacher_feats), untouched_heads(self.student):
            losses = self.student.loss(batch_inputs, fresh_samples(samples))
        if self.teacher_loss_weight != 1:
            losses = reweight_loss_dict(losses, self.teacher_loss_weight)
        return rename_loss_dict('teacher.', losses)

    def _distill_loss(
        self, student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Compare adapted student and detached teacher features; λ is in the loss only."""
        if self.detach_student:
            student_feats = [x.detach() for x in student_feats]
        return feature_losses(
            self.distill_loss, self.distill_coef, self.adapter(student_feats), teacher_feats
        )
