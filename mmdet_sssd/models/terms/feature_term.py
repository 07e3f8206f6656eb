from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType
from torch import Tensor

from ...errors import ConfigError
from ..config_class import is_config_of
from ..layers import instance_norm
from ..losses import FeatureLoss
from .distill_term import DetectorOutputs, DistillTerm


@MODELS.register_module()
class FeatureTerm(DistillTerm):
    """Distills the feature levels of a pretrained teacher.

    Each level of the student has a level of the teacher: one of the same size for all of them, or
    else, if both have as many, the one of the same index, resized to the student's size (bilinear).
    Channels that differ are adapted on the student's side. Source: Structural KD
    (https://arxiv.org/abs/2211.13133), with ``SSIMLoss``; any ``FeatureLoss`` will do.

    Args:
        key: Its place in the config; the distiller sets it.
        student: The student's outputs for a blank image; the distiller sets it.
        teacher: The teacher's; the distiller sets it.
        distill_loss: Config of a ``FeatureLoss``.
        distill_coef: λ, >= 0. Defaults to 1.
        adapter: Config of the adapter between the student's features and the loss; ``type`` defaults
            to ``'ChannelAdapter'``, a 1×1 convolution where the channels differ. ``in_channels`` and,
            for it, ``out_channels`` are read off student and teacher.
        normalize: Whether each channel of both sides is instance-normalised first, as SSSD does it.
            Defaults to False.

    Raises:
        ConfigError: if an argument is not one of these, or the levels cannot be matched.
    """

    def __init__(
        self,
        key: str,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        distill_loss: ConfigType,
        distill_coef: float = 1.0,
        adapter: OptConfigType = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(key, distill_coef)
        self.teacher_levels = match_levels(key, student.feats, teacher.feats)
        self.adapter = _build_adapter(
            key,
            adapter,
            [x.shape[1] for x in student.feats],
            [teacher.feats[p].shape[1] for p in self.teacher_levels],
        )
        self.distill_loss = build_feature_loss(f'{key}.distill_loss', distill_loss)
        self.normalize = normalize

    def forward(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compare the feature levels; see :func:`feature_losses`."""
        feats = [x.detach() for x in student.feats] if self.detach_student else student.feats
        targets = [
            _like(teacher.feats[p], x) for p, x in zip(self.teacher_levels, feats, strict=True)
        ]
        return feature_losses(
            self.distill_loss, self.distill_coef, self.adapter(feats), targets, self.normalize
        )


def feature_losses(
    distill_loss: FeatureLoss,
    distill_coef: float,
    adapted: Sequence[Tensor],
    target: Sequence[Tensor],
    normalize: bool = True,
) -> dict[str, Tensor]:
    """Compare adapted student features with the teacher's.

    Args:
        distill_loss: What compares them.
        distill_coef: λ.
        adapted: The student's levels of shape (B, C_p, h_p, w_p), as the adapter left them.
        target: The teacher's, of the same shapes; they are detached.
        normalize: Whether both sides are instance-normalised first.

    Returns:
        ``loss_distill``, which includes λ, and ``distill_distance.p`` of each level p, which has
        neither λ nor a gradient.
    """
    target = [x.detach() for x in target]
    if normalize:
        adapted, target = [instance_norm(x) for x in adapted], [instance_norm(x) for x in target]
    distances = distill_loss.level_distances(adapted, target)
    return {
        'loss_distill': distill_coef * distill_loss.average(distances, adapted),
        **{f'distill_distance.{i}': x for i, x in enumerate(distances.detach())},
    }


def build_feature_loss(key: str, config: ConfigType) -> FeatureLoss:
    """Build a loss between feature levels.

    Raises:
        ConfigError: if it is something else; the message names the key.
    """
    if not is_config_of(config, FeatureLoss):
        raise ConfigError(
            f'{key} is {config!r}, which does not compare feature levels; '
            'accepted: JSDistanceLoss, NormedMSELoss, SSIMLoss, or a FeatureLoss of your own'
        )
    return MODELS.build(config)


def match_levels(key: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[int]:
    """Choose the teacher's level for each of the student's.

    Args:
        key: Place of the term in the config, for the error.
        student: The student's feature levels of shape (1, C_p, h_p, w_p) for a blank image.
        teacher: The teacher's, for the same.

    Raises:
        ConfigError: if neither sizes nor the number of levels agree.
    """
    wanted, found = ([tuple(x.shape[2:]) for x in feats] for feats in (student, teacher))
    if set(wanted) <= set(found):
        return [found.index(size) for size in wanted]
    if len(wanted) == len(found):
        return [*range(len(wanted))]
    raise ConfigError(
        f'{key}: the feature levels of student and teacher cannot be matched; for the same image the '
        f"student's are of {_sizes(wanted)}, the teacher's of {_sizes(found)}. Accepted: a teacher "
        'that has a level of each of these sizes, or as many levels'
    )


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    return ', '.join(f'{h}×{w}' for h, w in sizes)


def _build_adapter(
    key: str, config: OptConfigType, in_channels: list[int], out_channels: list[int]
) -> nn.Module:
    config = {'type': 'ChannelAdapter', 'in_channels': in_channels, **(config or {})}
    if config['type'] == 'ChannelAdapter':
        return MODELS.build({'out_channels': out_channels, **config})
    if in_channels != out_channels:
        raise ConfigError(
            f'{key}.adapter.type is {config["type"]!r}, but the feature levels of the student have '
            f'{in_channels} channels, those of the teacher {out_channels}; accepted: ChannelAdapter'
        )
    return MODELS.build(config)


def _like(target: Tensor, x: Tensor) -> Tensor:
    """Resize a teacher's level, and repeat it for students that make several of each image."""
    if target.shape[2:] != x.shape[2:]:
        target = F.interpolate(target, x.shape[2:], mode='bilinear', align_corners=False)
    return target.repeat(len(x) // len(target), 1, 1, 1) if len(x) != len(target) else target
