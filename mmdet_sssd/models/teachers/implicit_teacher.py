import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import OptConfigType
from torch import Tensor

from ...errors import ConfigError, check, within
from ..blank_pass import BlankPass
from ..building import build_part, completed
from ..outputs import DetectorOutputs
from ..replay import head_parameters
from ..student import count_classes
from ..weights_by_name import Weights, as_weights, check_names
from .teacher import Teacher

LEVEL = 'the index of a feature level of the student'


@MODELS.register_module()
class ImplicitTeacher(Teacher):
    """Makes features from labels and the student's features, and is trained with the student.

    Sources: LGD (https://arxiv.org/abs/2109.11496), SSSD (https://arxiv.org/abs/2303.05015).

    Args:
        blank: Outputs for a blank image; the distiller passes them.
        neck: Config of the module that makes the features; ``type`` defaults to
            ``'LabelEncoderTeacher'``, ``in_channels`` and ``num_classes`` to the student's.
        loss_weight: As in :class:`Teacher`. 0 leaves the teacher untrained (for experiments).
            Defaults to 1.
        start_level: Index of the first distilled feature level, counted as in FPN. Before it the
            teacher's features are the student's, without gradient, and dense heads do not run again:
            1 skips the finest level, which costs most. Defaults to 0.
        reuse_assignment: Whether the teacher's pass reuses the student's label assignment, as in LGD's
            reference code. Proposals of an R-CNN are always assigned anew. Refused for heads whose
            boxes can be inside out (``exp_on_reg=False``, as in RTMDet-tiny and -s). Defaults to False.
        head_grad: Factor >= 0 of the gradients that the teacher's detection loss sends into the
            student's head, or factors by parameter: each regular expression sets the factor of the
            parameters whose name it matches; others have 1. ``dict(cls=0)`` leaves classification
            branches to the student's own loss. Defaults to 1.

    Raises:
        ConfigError: if an argument is not accepted or disagrees with the student.
    """

    def __init__(
        self,
        blank: BlankPass,
        neck: OptConfigType = None,
        loss_weight: float | Weights = 1.0,
        start_level: int = 0,
        reuse_assignment: bool = False,
        head_grad: float | Weights = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        check('start_level', start_level, isinstance(start_level, int) and start_level >= 0, LEVEL)
        self.start_level = start_level
        check(
            'reuse_assignment',
            reuse_assignment,
            not (reuse_assignment and _can_invert_boxes(blank.detector)),
            "False, as this head's boxes can be inside out (exp_on_reg=False)",
        )
        self.reuses_assignment = reuse_assignment
        if head_grad != 1:
            self.head_grad = as_weights('head_grad', head_grad)
            names = [name for name, *_ in head_parameters(blank.detector)]
            check_names('head_grad', self.head_grad, names, "parameter of the student's head")
        neck = completed('neck', neck)
        if 'in_channels' not in neck:
            self._check_start_level(len(blank.channels))
            neck['in_channels'] = blank.channels[start_level:]
        if 'num_classes' not in neck:
            neck['num_classes'] = _count_classes(blank.detector)
        self.neck = build_part('neck', neck, nn.Module, 'LabelEncoderTeacher')
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
            made = self.neck(distilled, batch_inputs, batch_data_samples * repeats)
        return DetectorOutputs(
            (*(x.detach() for x in skipped), *made), start_level=self.start_level
        )

    def _check_start_level(self, num_levels: int) -> None:
        check('start_level', self.start_level, self.start_level < num_levels, LEVEL)


def _can_invert_boxes(student: BaseDetector) -> bool:
    """Tell whether a head predicts distances that may be negative.

    GIoU is unbounded on boxes that are inside out. An assignment by the predictions themselves avoids
    them; that of another pass does not, and the loss can fall without limit.
    """
    return any(getattr(x, 'exp_on_reg', True) is False for x in student.modules())


def _count_classes(student: BaseDetector) -> int:
    count = count_classes(student)
    if count is None:
        raise ConfigError(
            f'is not given, and no head of model.student, a {type(student).__name__}, has '
            'num_classes; accepted: the number of classes',
            'neck.num_classes',
        )
    return count
