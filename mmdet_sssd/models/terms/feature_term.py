from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType
from torch import Tensor

from ...errors import ConfigError
from ..blank_pass import BlankPass
from ..building import build_part, completed, is_config_of
from ..layers import ChannelAdapter, as_levels, instance_norm
from ..losses import FeatureLoss
from ..outputs import DetectorOutputs
from .distill_term import DistillTerm


@MODELS.register_module()
class FeatureTerm(DistillTerm):
    """Compares feature levels.

    Each level of the student has a level of the teacher: one of the same size for all of them, or
    else, if both have as many, the one of the same index, resized to the student's size (bilinear).
    Sources: with ``JSDistanceLoss`` SSSD (https://arxiv.org/abs/2303.05015), with ``NormedMSELoss``
    LGD (https://arxiv.org/abs/2109.11496), with ``SSIMLoss`` Structural KD
    (https://arxiv.org/abs/2211.13133).

    Beside ``loss`` it logs ``distance.p``, the distance of each feature level p.

    Args:
        blank: What student and teacher make of a blank image; the distiller gives it.
        distill_loss: Config of a ``FeatureLoss``.
        teacher: As in :class:`DistillTerm`.
        distill_coef: λ, >= 0. Defaults to the loss's ``default_coef``: 10 for ``JSDistanceLoss``,
            else 1.
        adapter: Config of the adapter on the student's side; ``type`` defaults to
            ``'ChannelAdapter'``, a 1×1 convolution where the channels differ. ``in_channels`` and,
            for it, ``out_channels`` are read off student and teacher. With an adapter that is given
            ``in_channels`` neither is looked at: each level meets the one of the same index.
        normalize: Whether each channel of both sides is instance-normalised first, as SSSD and LGD
            do it. Defaults to False.

    Raises:
        ConfigError: if an argument is not one of these, or the levels cannot be matched.
    """

    def __init__(
        self,
        blank: BlankPass,
        distill_loss: ConfigType,
        teacher: str | None = None,
        distill_coef: float | None = None,
        adapter: OptConfigType = None,
        normalize: bool = False,
    ) -> None:
        loss = build_part('distill_loss', distill_loss, FeatureLoss)
        super().__init__(teacher, loss.default_coef if distill_coef is None else distill_coef)
        adapter = completed('adapter', adapter, type='ChannelAdapter')
        self.pairs: list[tuple[int, int]] | None = (
            None  # of levels, the student's and the teacher's
        )
        if is_config_of(adapter, ChannelAdapter) or 'in_channels' not in adapter:
            matched = match_levels(blank.student.feats, blank.teacher.feats)
            self.pairs = [(p, q) for p, q in enumerate(matched) if q >= blank.teacher.start_level]
            adapter = self._with_channels(adapter, blank)
        elif blank.is_made:
            _check_channels(as_levels(adapter['in_channels']), blank.channels)
        self.adapter = build_part('adapter', adapter, nn.Module)
        self.distill_loss = loss
        self.normalize = normalize

    def _with_channels(self, adapter: ConfigType, blank: BlankPass) -> ConfigType:
        """Give an adapter's config the channels of the levels that meet."""
        given = tuple(blank.channels[p] for p, _ in self.pairs)
        wanted = tuple(blank.teacher.feats[q].shape[1] for _, q in self.pairs)
        if is_config_of(adapter, ChannelAdapter):
            return {'in_channels': given, 'out_channels': wanted, **adapter}
        if given != wanted:
            raise ConfigError(
                f'is {adapter["type"]!r}, but the feature levels of the student have {[*given]} '
                f'channels, those of the teacher {[*wanted]}; accepted: ChannelAdapter',
                'adapter.type',
            )
        return {'in_channels': given, **adapter}

    def forward(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compare the feature levels; see the base class."""
        alike = [(p, p) for p in range(teacher.start_level, len(student.feats))]
        pairs = self.pairs or alike
        feats = [student.feats[p] for p, _ in pairs]
        targets = [_fitted(teacher.feats[q], x) for x, (_, q) in zip(feats, pairs, strict=True)]
        adapted = self.adapter(feats)
        if self.normalize:
            adapted, targets = ([instance_norm(x) for x in side] for side in (adapted, targets))
        distances = self.distill_loss.level_distances(adapted, targets)
        logged = {f'distance.{p}': x for (p, _), x in zip(pairs, distances.detach(), strict=True)}
        return {'loss': self.distill_loss.average(distances, adapted), **logged}


def match_levels(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[int]:
    """Choose the teacher's level for each of the student's.

    Args:
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
        'the feature levels of student and teacher cannot be matched; for the same image the '
        f"student's are of {_sizes(wanted)}, the teacher's of {_sizes(found)}. Accepted: a teacher "
        'that has a level of each of these sizes, or as many levels'
    )


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    return ', '.join(f'{h}×{w}' for h, w in sizes)


def _check_channels(given: Sequence[int], channels: Sequence[int]) -> None:
    if set(given) != set(channels):
        raise ConfigError(
            f'is {[*given]}, but the feature levels of model.student have {[*channels]} channels; '
            'leave it out to read it off the student',
            'adapter.in_channels',
        )


def _fitted(target: Tensor, x: Tensor) -> Tensor:
    """Resize a teacher's level, and repeat it for students that make several of each image."""
    if target.shape[2:] != x.shape[2:]:
        target = F.interpolate(target, x.shape[2:], mode='bilinear', align_corners=False)
    return target.repeat(len(x) // len(target), 1, 1, 1) if len(x) != len(target) else target
