from abc import ABCMeta, abstractmethod

from mmdet.models import BaseDetector
from mmdet.structures import SampleList
from mmengine.model import BaseModule
from torch import Tensor

from ..outputs import DetectorOutputs
from ..weights_by_name import Weights, as_weights


class Teacher(BaseModule, metaclass=ABCMeta):
    """Makes outputs for the student's images, which terms compare with the student's.

    A teacher is trained unless its ``loss_weight`` is 0: the student's head then runs on the teacher's
    features with the same labels, without changing the student, and the weighed loss is added to the
    sum. The head's outputs in this run become the teacher's.

    The distiller builds subclasses as ``cls(blank, **settings)``; ``blank``, a
    :class:`~mmdet_sssd.models.blank_pass.BlankPass`, has the student's outputs for a blank image.

    Args:
        loss_weight: Weight of its detection loss, >= 0, or weights by loss: each regular expression,
            such as ``'cls'``, sets the weight of the losses whose name it matches; others have 1.
            Defaults to 0: not trained.

    Attributes:
        needs_head: Whether a term compares head outputs; the distiller sets it.
        is_trained: Whether the teacher is trained.
        loss_weights: Weights of its losses by regular expression.
        active: Whether the teacher and its terms run; ``TeacherScheduleHook`` sets it.
        reuses_assignment: Whether its detection loss reuses the student's label assignment.
        start_level: Index of the first feature level that it makes itself; lower levels are the
            student's.
        head_grad: Weights of the gradients that its detection loss sends into the student's head, by
            regular expression on parameter names. Empty: all are 1.

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
            outputs: The student's outputs.
            batch_inputs: Preprocessed images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples, with ground truth in input pixels.

        Returns:
            The teacher's feature levels and, with ``needs_head``, the outputs of its own head, if any.
        """

    def on_blank(
        self,
        student: BaseDetector,
        outputs: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> DetectorOutputs:
        """Make outputs that only serve for their shapes; as :meth:`forward`."""
        return self(student, outputs, batch_inputs, batch_data_samples)
