from abc import ABCMeta, abstractmethod

import torch
import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import OptConfigType
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from ..errors import ConfigError, check, within
from .building import build_part, completed
from .dense_head import HeadRecord, outputs_from_feats
from .replay import DetectorOutputs, fresh_samples, given_feats, head_parameters
from .student import count_classes, probe
from .weights_by_name import Weights, as_weights, check_names

LEVEL = 'the index of a feature level of the student'


class Teacher(BaseModule, metaclass=ABCMeta):
    """Makes outputs for the student's images, which terms compare with the student's.

    A teacher is trained unless its ``loss_weight`` is 0: the student's head then runs on the teacher's
    features with the same labels, without changing the student, and the weighed loss is added to the
    sum. The head's outputs in this run become the teacher's.

    The distiller builds subclasses as ``cls(student, **settings)``, with the built student. A setting
    is read off it by :func:`~mmdet_sssd.models.probe`.

    Args:
        loss_weight: Weight of its detection loss, >= 0, or weights by loss: each regular expression,
            such as ``'cls'``, sets the weight of the losses whose name it matches; others have 1.
            Defaults to 0: not trained.

    Attributes:
        needs_head: Whether a term compares head outputs; the distiller sets it.
        is_trained: Whether the teacher is trained.
        loss_weights: Weights of its losses by regular expression.
        active: Whether the teacher and its terms run; ``DistillPhasesHook`` sets it.
        reuses_assignment: Whether its detection loss reuses assignments that depend on predictions.
        start_level: Index of the first feature level that it makes itself; lower levels are the
            student's.
        head_grad: Factors of the gradients that its detection loss sends into the student's head, by
            regular expression on parameter names. Empty: all are 1.
        place: Its key in the config, and those of its settings that lie elsewhere, for errors; the
            distiller sets it. See :func:`~mmdet_sssd.errors.within`.

    Raises:
        ConfigError: if a weight is negative.
    """

    needs_head = False
    head_grad: Weights = {}
    reuses_assignment = False
    start_level = 0
    place: tuple[str, dict[str, str]] = ('model.teachers', {})

    def __init__(self, loss_weight: float | Weights = 0.0) -> None:
        super().__init__()
        self.loss_weights = as_weights('loss_weight', loss_weight)
        self.is_trained = loss_weight != 0
        self.active = True

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

    def probe(
        self,
        student: BaseDetector,
        outputs: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> DetectorOutputs:
        """Make outputs that only serve for their shapes; as :meth:`forward`."""
        return self(student, outputs, batch_inputs, batch_data_samples)


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
        feats = self.detector.extract_feat(self.prepare(batch_inputs, batch_data_samples))
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
        feats = tuple(x.to(images.dtype) for x in self.detector.extract_feat(images))
        full_precision = torch.autocast(images.device.type, enabled=False)
        record = HeadRecord(self.detector, self.needs_head)
        with given_feats(self.detector, feats), record, full_precision:
            found = self.detector.predict(images, fresh_samples(batch_data_samples), rescale=False)
        return record.outputs(feats), [sample.pred_instances for sample in found]

    def prepare(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Convert the student's images of shape (B, 3, H, W) for the detector."""
        return batch_inputs


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
        start_level: Index of the first distilled feature level, counted as in FPN. Before it the
            teacher's features are the student's, without gradient, and dense heads do not run again:
            1 skips the finest level, which costs most; None does so if levels differ in size. Defaults
            to 0.
        reuse_assignment: Whether the teacher's pass reuses the student's label assignment even where it
            depends on predictions (YOLOX, RTMDet, TOOD, DETRs), as in LGD's reference code; where it
            does not (RetinaNet, FCOS, ATSS), it is reused anyway. Proposals of an R-CNN, and PAA's and
            LAD's second step, are always assigned anew. Refused for heads whose boxes can be inside
            out (``exp_on_reg=False``, as in RTMDet-tiny and -s). Defaults to False.
        head_grad: Factor >= 0 of the gradients that the teacher's detection loss sends into the
            student's head, or factors by parameter: each regular expression sets the factor of the
            parameters whose name it matches; others have 1. ``dict(cls=0)`` leaves classification
            branches to the student's own loss. Defaults to 1.

    Raises:
        ConfigError: if an argument is not accepted or disagrees with the student.
    """

    def __init__(
        self,
        student: BaseDetector,
        neck: OptConfigType = None,
        loss_weight: float | Weights = 1.0,
        start_level: int | None = 0,
        reuse_assignment: bool = False,
        head_grad: float | Weights = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        if start_level is None:
            start_level = _after_the_finest(student)
        check('start_level', start_level, isinstance(start_level, int) and start_level >= 0, LEVEL)
        self.start_level = start_level
        check(
            'reuse_assignment',
            reuse_assignment,
            not (reuse_assignment and _can_invert_boxes(student)),
            "False, as this head's boxes can be inside out (exp_on_reg=False)",
        )
        self.reuses_assignment = reuse_assignment
        if head_grad != 1:
            self.head_grad = as_weights('head_grad', head_grad)
            names = [name for name, *_ in head_parameters(student)]
            check_names('head_grad', self.head_grad, names, "parameter of the student's head")
        neck = completed('neck', neck)
        if 'in_channels' not in neck:
            channels = probe(student).channels
            self._check_start_level(len(channels))
            neck['in_channels'] = channels[start_level:]
        if 'num_classes' not in neck:
            neck['num_classes'] = _count_classes(student)
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
            feats = self.neck(distilled, batch_inputs, batch_data_samples * repeats)
        return DetectorOutputs((*(x.detach() for x in skipped), *feats))

    def _check_start_level(self, num_levels: int) -> None:
        check('start_level', self.start_level, self.start_level < num_levels, LEVEL)


def _can_invert_boxes(student: BaseDetector) -> bool:
    """Tell whether a head predicts distances that may be negative.

    GIoU is unbounded on boxes that are inside out. An assignment by the predictions themselves avoids
    them; that of another pass does not, and the loss can fall without limit.
    """
    return any(getattr(x, 'exp_on_reg', True) is False for x in student.modules())


def _after_the_finest(student: BaseDetector) -> int:
    """Find the first level after the finest; a student that only runs on a GPU counts as a pyramid."""
    try:
        sizes = {x.shape[2:] for x in probe(student).feats}
    except ConfigError:
        return 1
    return int(len(sizes) > 1)


def _count_classes(student: BaseDetector) -> int:
    count = count_classes(student)
    if count is None:
        raise ConfigError(
            f'is not given, and no head of model.student, a {type(student).__name__}, has '
            'num_classes; accepted: the number of classes',
            'neck.num_classes',
        )
    return count
