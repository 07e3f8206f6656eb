import math
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

from ..errors import ConfigError, check, is_number
from .adapters import ChannelAdapter, as_levels, instance_norm
from .building import build_part, completed, is_config_of
from .losses import FeatureLoss
from .replay import DetectorOutputs
from .student import probe, probe_pair
from .teachers import Teacher

Levels = Sequence[int | None]


class DistillTerm(BaseModule, metaclass=ABCMeta):
    """Compares the student's outputs with one teacher's.

    The distiller builds subclasses as ``cls(student, teacher, **settings)``, with the built student and
    teacher; :func:`~mmdet_sssd.models.probe_pair` gives both sides' outputs for a blank image. The
    setting ``teacher`` is the distiller's: a teacher's name, which may be left out if there is one.

    Args:
        distill_coef: Coefficient λ, >= 0; ``AdaptiveDistillCoefHook`` may change it during training.
            Defaults to 1.

    Attributes:
        distill_coef: Current λ.
        teacher_name: Name of the teacher; the distiller sets it.
        detach_student: Whether the student's outputs are detached, which trains the adapter only;
            ``DistillPhasesHook`` sets it.
        is_measured: Whether the term's gradient into the student's features is measured;
            ``AdaptiveDistillCoefHook`` sets it.
        needs_head: Whether the term compares outputs of dense heads.
        config_keys: For errors, the arguments of :func:`~mmdet_sssd.errors.within` for its settings;
            the distiller sets it.

    Raises:
        ConfigError: if ``distill_coef`` is negative, or not a finite number.
    """

    needs_head = False
    teacher_name: str
    config_keys: tuple[str, dict[str, str]] = ('model.terms', {})

    def __init__(self, distill_coef: float = 1.0) -> None:
        super().__init__()
        check('distill_coef', distill_coef, is_number(distill_coef), 'a number >= 0')
        self.distill_coef = float(distill_coef)
        self.detach_student = False
        self.is_measured = False

    @abstractmethod
    def forward(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compare student and teacher on the same images.

        Args:
            student: The student's outputs.
            teacher: The teacher's outputs, without gradient.
            batch_inputs: Images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples.

        Returns:
            ``loss``, a scalar without λ, and other scalars to log.
        """


@MODELS.register_module()
class FeatureTerm(DistillTerm):
    """Compares feature levels.

    Each student level meets the teacher level nearest in size, which is resized (bilinear) if needed.
    The log lists the pairs, if sizes decide and differ.
    Sources: with ``JSDistanceLoss`` SSSD (https://arxiv.org/abs/2303.05015), with ``NormedMSELoss``
    LGD (https://arxiv.org/abs/2109.11496), with ``SSIMLoss`` Structural KD
    (https://arxiv.org/abs/2211.13133).

    Besides ``loss`` it logs ``distance.p``, the distance on each feature level p.

    Args:
        student: The built student; the distiller passes it.
        teacher: The built teacher; the distiller passes it.
        distill_loss: Config of a ``FeatureLoss``.
        distill_coef: λ, >= 0. Defaults to the loss's ``default_coef``: 10 for ``JSDistanceLoss``,
            else 1.
        adapter: Config of the adapter on the student's side; ``type`` defaults to
            ``'ChannelAdapter'``, a 1×1 convolution where the channels differ. ``in_channels`` and,
            for ``ChannelAdapter``, ``out_channels`` default to the student's and the teacher's.
            Another adapter with ``in_channels`` set pairs levels by index and takes no ``levels``: for
            students that only run on a GPU.
        normalize: Whether to instance-normalise both sides first, as SSSD and LGD do. Defaults to
            False.
        levels: Index of the teacher level for each of the student's, None to leave one out. Defaults
            to the nearest in size.

    Raises:
        ConfigError: if a setting is not accepted, or the levels cannot be paired.
    """

    def __init__(
        self,
        student: BaseDetector,
        teacher: Teacher,
        distill_loss: ConfigType,
        distill_coef: float | None = None,
        adapter: OptConfigType = None,
        normalize: bool = False,
        levels: Levels | None = None,
    ) -> None:
        loss = build_part('distill_loss', distill_loss, FeatureLoss)
        super().__init__(loss.default_coef if distill_coef is None else distill_coef)
        adapter = completed('adapter', adapter, type='ChannelAdapter')
        self.start_level = teacher.start_level
        self.pairs: list[tuple[int, int]] | None = None  # indices of student and teacher levels
        if is_config_of(adapter, ChannelAdapter) or 'in_channels' not in adapter:
            outputs, of_teacher = probe_pair(student, teacher)
            matched = match_levels(outputs.feats, of_teacher.feats, levels)
            self.pairs = [(p, q) for p, q in matched if q >= self.start_level]
            channels = tuple(outputs.channels[p] for p, _ in self.pairs)
            adapter = _with_channels(
                adapter, channels, tuple(of_teacher.channels[q] for _, q in self.pairs)
            )
        else:
            check('levels', levels, levels is None, 'None beside an adapter with in_channels')
            _check_channels(as_levels(adapter['in_channels']), student)
        self.adapter = build_part('adapter', adapter, nn.Module)
        self.distill_loss = loss
        self.normalize = normalize

    def forward(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compare the feature levels; see the base class."""
        pairs = self.pairs
        if pairs is None:
            pairs = [(p, p) for p in range(self.start_level, len(student.feats))]
        feats = [student.feats[p] for p, _ in pairs]
        targets = [_resized(teacher.feats[q], x) for x, (_, q) in zip(feats, pairs, strict=True)]
        adapted = self.adapter(feats)
        if self.normalize:
            adapted, targets = ([instance_norm(x) for x in side] for side in (adapted, targets))
        distances = self.distill_loss.level_distances(adapted, targets)
        logged = {f'distance.{p}': x for (p, _), x in zip(pairs, distances.detach(), strict=True)}
        return {'loss': self.distill_loss.average(distances, adapted), **logged}


def match_levels(
    student: Sequence[Tensor], teacher: Sequence[Tensor], levels: Levels | None = None
) -> list[tuple[int, int]]:
    """Pair each student level with the teacher level nearest in size, the last of several.

    Student levels whose nearest is 1.5 octaves away or more (sides 2.8 times as long or short) are left
    out.

    Args:
        student: The student's feature levels of shape (1, C_p, h_p, w_p) for a blank image.
        teacher: The teacher's feature levels for the same image.
        levels: Index of the teacher level for each student level, None to leave it out, instead.

    Returns:
        Indices of the student and the teacher level of each pair.

    Raises:
        ConfigError: if ``levels`` are others than there are, or no level has one near it.
    """
    wanted, found = ([x.shape[2] * x.shape[3] for x in feats] for feats in (student, teacher))
    sizes = f"the student's are {_sizes(student)}, the teacher's {_sizes(teacher)} pixels"
    if levels is not None:
        pairs = [(p, q) for p, q in enumerate(levels) if q is not None]
        fits = len(levels) == len(wanted) and {q for _, q in pairs} <= {*range(len(found))}
        accepted = 'a level of the teacher for each of the student, or None; for the same image '
        check('levels', levels, pairs and fits, accepted + sizes)
        return pairs
    if wanted == found:  # such as an hourglass's, which are all of one size
        return [(p, p) for p in range(len(wanted))]
    octaves = [[abs(math.log2(x / y)) / 2 for y in found] for x in wanted]
    nearest = [min(range(len(found)), key=lambda q: (row[q], -q)) for row in octaves]
    pairs = [(p, q) for p, q in enumerate(nearest) if octaves[p][q] < 1.5]
    if not pairs:
        raise ConfigError(
            f'no feature levels of student and teacher are near in size; for the same image {sizes}. '
            'Accepted: a teacher with levels nearer in size, or levels'
        )
    left_out = sorted({*range(len(wanted))} - {p for p, _ in pairs})
    print_log(
        f'FeatureTerm pairs levels of student and teacher, {pairs}; for the same image {sizes}'
        + f'. Left out of the student: {left_out}' * bool(left_out),
        logger='current',
    )
    return pairs


def _sizes(feats: Sequence[Tensor]) -> str:
    return ', '.join(f'{x.shape[2]}×{x.shape[3]}' for x in feats)


def _with_channels(
    adapter: ConfigType, channels: Sequence[int], teacher_channels: Sequence[int]
) -> ConfigType:
    """Add the paired levels' channels to an adapter's config."""
    if is_config_of(adapter, ChannelAdapter):
        return {'in_channels': channels, 'out_channels': teacher_channels, **adapter}
    if channels != teacher_channels:
        raise ConfigError(
            f'is {adapter["type"]!r}, but the feature levels of the student have '
            f'{[*channels]} channels, those of the teacher {[*teacher_channels]}; accepted: '
            'ChannelAdapter',
            'adapter.type',
        )
    return {'in_channels': channels, **adapter}


def _check_channels(in_channels: Sequence[int], student: BaseDetector) -> None:
    """Compare given channels with the student's, if it runs on a CPU."""
    try:
        channels = probe(student).channels
    except ConfigError:
        return
    if set(in_channels) != set(channels):
        raise ConfigError(
            f'is {[*in_channels]}, but the feature levels of model.student have {[*channels]} '
            'channels; leave it out to use those of the student',
            'adapter.in_channels',
        )


def _resized(target: Tensor, x: Tensor) -> Tensor:
    """Resize a teacher's level, and repeat it for students with several features per image."""
    if target.shape[2:] != x.shape[2:]:
        target = F.interpolate(target, x.shape[2:], mode='bilinear', align_corners=False)
    return target.repeat(len(x) // len(target), 1, 1, 1) if len(x) != len(target) else target
