from abc import ABCMeta, abstractmethod

from mmdet.models import BaseDetector
from mmdet.structures import SampleList
from mmengine.model import BaseModule
from torch import Tensor

from ..outputs import DetectorOutputs
from ..weights_by_name import Weights, as_weights


class Teacher(BaseModule, metaclass=ABCMeta):
    """Makes outputs for the student's images, which terms compare with the student's.

    A teacher is trained unless its ``loss_weight`` is 0: the student's head is then run on its
    features with the same labels, leaving no trace in the student, and the loss, weighed, is part of
    the sum. What that run of the head makes are the teacher's outputs, too.

    The distiller builds a teacher of a class derived from this one as ``cls(blank, **settings)``, with
    a :class:`~mmdet_sssd.models.blank_pass.BlankPass` to read the student off.

    Args:
        loss_weight: Weight of its detection loss, >= 0, or weights by loss: a regular expression, such
            as ``'cls'``, sets that of the losses in whose name it is found; the others' is 1. Defaults
            to 0: it is not trained.

    Attributes:
        needs_head: Whether a term compares the outputs of its head; the distiller sets it.
        is_trained: Whether it is.
        loss_weights: Weights of its losses by regular expression.
        active: Whether it is at work; if not, neither are its terms. ``TeacherScheduleHook`` sets it.
        reuses_assignment: Whether the student's assignment of labels to predictions holds for its
            detection loss too.
        start_level: Index of the first feature level that is its own; before it its features are
            the student's.
        head_grad: Weights of the gradients that its detection loss sends into parameters of the
            student's head, by regular expression on their names. Empty: all are 1.

    Raises:
        ConfigError: if a weight is negative.
    """

    needs_head = False
    head_grad: Weights = {}
    reuses_assignment = False
    start_level = 0

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
            outputs: What it made.
            batch_inputs: The images of shape (B, 3, H, W), as its data preprocessor left them.
            batch_data_samples: Their B data samples, with ground truth in input pixels.

        Returns:
            Its feature levels and, with ``needs_head``, if it has a head of its own, what that makes.
        """

    def on_blank(
        self,
        student: BaseDetector,
        outputs: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> DetectorOutputs:
        """Make outputs of which the shapes alone are read; as :meth:`forward`."""
        return self(student, outputs, batch_inputs, batch_data_samples)
