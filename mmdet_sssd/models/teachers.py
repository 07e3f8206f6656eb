import re
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import OptConfigType
from mmengine.model import BaseModule
from torch import Tensor

from ..errors import ConfigError, check, is_number, within
from .building import build_part, completed
from .replay import DetectorOutputs, Factors, head_modules, head_parameters
from .student import count_classes, probe

A_LEVEL = 'the index of a feature level of the student'


class Teacher(BaseModule, metaclass=ABCMeta):
    """Makes outputs for the student's images, which terms compare with the student's.

    A teacher with a ``loss_weight`` above 0 is trained: the student's head runs on its features with
    the same labels, without changing the student, and the weighted loss is added to the sum. With
    ``needs_head`` the head's outputs in this run become the teacher's.

    The distiller builds subclasses as ``cls(student, **settings)``, with the built student;
    :func:`~mmdet_sssd.models.probe` gives its outputs for a blank image.

    Args:
        loss_weight: Weight of its detection loss, >= 0. Defaults to 0: not trained.

    Attributes:
        needs_head: Whether a term compares head outputs; the distiller sets it.
        is_trained: Whether the teacher is trained.
        active: Whether the teacher and its terms run; ``DistillPhasesHook`` sets it.
        trains_alone: Whether its detection loss trains nothing of the student, whatever ``head_grad``
            is; ``DistillPhasesHook`` sets it.
        reuses_assignment: Whether its detection loss reuses assignments that depend on predictions.
        start_level: Index of the first feature level that it makes itself; the finer ones before it
            are the student's, detached.
        head_grad: Factors of the gradients that its detection loss sends into the student's head, by
            regular expression on parameter names. Empty: all are 1.
        config_keys: For errors, the arguments of :func:`~mmdet_sssd.errors.within` for its settings;
            the distiller sets it.

    Raises:
        ConfigError: if ``loss_weight`` is negative, or not a finite number.
    """

    needs_head = False
    head_grad: Factors = {}
    reuses_assignment = False
    start_level = 0
    config_keys: tuple[str, dict[str, str]] = ('model.teachers', {})

    def __init__(self, loss_weight: float = 0.0) -> None:
        super().__init__()
        check('loss_weight', loss_weight, is_number(loss_weight), 'a number >= 0')
        self.loss_weight = loss_weight
        self.is_trained = loss_weight != 0
        self.active = True
        self.trains_alone = False

    @abstractmethod
    def forward(
        self,
        student: BaseDetector,
        outputs: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> DetectorOutputs:
        """Make the teacher's outputs for a batch.

        Args:
            student: The student, after its own pass through the batch.
            outputs: The student's outputs.
            batch_inputs: Preprocessed images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples, with ground truth in input pixels.

        Returns:
            The teacher's feature levels and, with ``needs_head``, the outputs of its own head, if any.
        """

    def probe(self, *args: Any) -> DetectorOutputs:
        """Make outputs that only serve for their shapes; arguments as of :meth:`forward`."""
        return self(*args)


@MODELS.register_module()
class ImplicitTeacher(Teacher):
    """Makes features from labels and the student's features, and is trained with the student.

    Sources: LGD (https://arxiv.org/abs/2109.11496), SSSD (https://arxiv.org/abs/2303.05015).

    Args:
        student: The built student; the distiller passes it.
        neck: Config of the module that makes the features; ``type`` defaults to
            ``'LabelEncoderTeacher'``, ``in_channels`` and ``num_classes`` to the student's.
        loss_weight: As in :class:`Teacher`. 0 leaves the teacher untrained (for experiments).
            Defaults to 1.
        start_level: Index of the first distilled feature level; 0 is the finest, which costs most. On
            those before it the teacher's features are the student's, detached, dense heads do not run
            again, and their losses count without gradient. None: 1, or 0 if the first level is not
            finer than all others (YOLOv3's is the coarsest). Defaults to 0.
        reuse_assignment: Whether the teacher's pass reuses the student's label assignment even where it
            depends on predictions (YOLOX, RTMDet, TOOD, DETRs), as in LGD's reference code; where it
            does not (RetinaNet, FCOS, ATSS), it is reused anyway. Proposals of an R-CNN, and PAA's and
            LAD's second step, are always assigned anew. Refused for heads whose boxes can be inside
            out (``exp_on_reg=False``, as in RTMDet-tiny and -s), and for DETRs that choose their
            queries by the features (``as_two_stage``, as in DINO). Defaults to False.
        head_grad: Factor >= 0 of the gradients that the teacher's detection loss sends into the
            student's head, or factors by regular expression: the first that is found in a parameter's
            name sets its factor; others have 1, and each must be found in some name. ``dict(cls=0)``
            leaves classification branches to the student's own loss. Defaults to 1.

    Raises:
        ConfigError: if an argument is not accepted or disagrees with the student.
    """

    def __init__(
        self,
        student: BaseDetector,
        neck: OptConfigType = None,
        loss_weight: float = 1.0,
        start_level: int | None = 0,
        reuse_assignment: bool = False,
        head_grad: float | Factors = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        if start_level is None:
            start_level = _start_after_finest(student)
        accepted = isinstance(start_level, int) and start_level >= 0
        check('start_level', start_level, accepted, A_LEVEL)
        self.start_level = start_level
        if reuse_assignment and (reason := _why_assign_anew(student)):
            check('reuse_assignment', reuse_assignment, False, f'False, as {reason}')
        self.reuses_assignment = reuse_assignment
        if self.is_trained:
            _check_head_is_not_recomputed(student)
        if head_grad != 1:
            self.head_grad = _checked_factors(head_grad, student)
        neck = completed('neck', neck, type='LabelEncoderTeacher')
        if 'in_channels' not in neck:
            channels = probe(student).channels
            self._check_start_level(len(channels))
            neck['in_channels'] = channels[start_level:]
        if 'num_classes' not in neck:
            neck['num_classes'] = count_classes(student)
            if neck['num_classes'] is None:
                raise ConfigError(
                    f'is not given, and no head of model.student, a {type(student).__name__}, has '
                    'num_classes; accepted: the number of classes',
                    'neck.num_classes',
                )
        self.neck = build_part('neck', neck, nn.Module)
        self.requires_grad_(self.is_trained)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.neck.num_classes

    @property
    def use_masks(self) -> bool:
        """Whether the teacher uses instance masks."""
        return getattr(self.neck, 'use_masks', False)

    def forward(
        self,
        student: BaseDetector,
        outputs: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> DetectorOutputs:
        """Make features of the same shapes as the student's; see the base class."""
        self._check_start_level(len(outputs.feats))
        repeats = len(outputs.feats[0]) // len(batch_data_samples)  # 3 in TridentNet's training
        skipped, distilled = outputs.feats[: self.start_level], outputs.feats[self.start_level :]
        with within('neck'):
            feats = self.neck(distilled, batch_inputs, batch_data_samples * repeats)
        # Under fp16 AMP the maps of convolutions and of norms differ in type; RoI extractors take one.
        return DetectorOutputs((*(x.detach().to(feats[0].dtype) for x in skipped), *feats))

    def _check_start_level(self, num_levels: int) -> None:
        check('start_level', self.start_level, self.start_level < num_levels, A_LEVEL)


def _checked_factors(head_grad: float | Factors, student: BaseDetector) -> Factors:
    """Give one number a pattern that all names match, and refuse patterns that no name does."""
    factors = dict(head_grad) if isinstance(head_grad, Mapping) else {'': head_grad}
    names = [name for name, *_ in head_parameters(student)]
    accepted = 'a number >= 0, or such numbers by regular expression, such as dict(cls=0.5)'
    for pattern, factor in factors.items():
        check('head_grad', head_grad, is_number(factor) and _is_pattern(pattern), accepted)
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"has {pattern!r}, which matches no parameter of the student's head; accepted: regular "
                f'expressions that match some of {", ".join(names)}',
                'head_grad',
            )
    return factors


def _is_pattern(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError):
        return False
    return True


def _why_assign_anew(student: BaseDetector) -> str | None:
    """Say why another pass's assignment does not fit a detector, if it does not.

    GIoU is unbounded on boxes that are inside out. An assignment by the predictions themselves avoids
    them; that of another pass does not, and the loss can fall without limit. Where queries are chosen
    by the features, the same one is at another place in another pass.
    """
    if any(getattr(x, 'exp_on_reg', True) is False for x in student.modules()):
        return "this head's boxes can be inside out (exp_on_reg=False)"
    if getattr(student, 'as_two_stage', False):
        return 'this detector chooses its queries by the features (as_two_stage=True)'
    return None


def _check_head_is_not_recomputed(student: BaseDetector) -> None:
    """Refuse activation checkpointing in heads, whose second pass it would repeat after its end."""
    for path, module in head_modules(student).items():
        key = 'with_cp' if getattr(module, 'with_cp', False) else 'num_cp'
        if getattr(module, key, 0) > 0:
            raise ConfigError(
                f'has a part of its head with {key}={getattr(module, key)}: {path}. The head runs '
                'twice in a step, which activation checkpointing does not allow; accepted: '
                'with_cp=False, num_cp=-1 in heads (backbones may have them)',
                'model.student',
            )


def _start_after_finest(student: BaseDetector) -> int:
    """Choose 1, or 0 if the first level is not the finest; where only a GPU could tell, it is."""
    try:
        first, *others = [x.shape[2:].numel() for x in probe(student).feats]
    except ConfigError:
        return 1
    return int(bool(others) and first > max(others))
