from abc import ABCMeta, abstractmethod

from mmdet.structures import SampleList
from mmengine.model import BaseModule
from torch import Tensor

from ...errors import check, is_number
from ..outputs import DetectorOutputs


class DistillTerm(BaseModule, metaclass=ABCMeta):
    """Compares the student's outputs with one teacher's.

    The distiller builds subclasses as ``cls(blank, **settings)``; ``blank``, a
    :class:`~mmdet_sssd.models.blank_pass.BlankPass`, has both sides' outputs for a blank image.

    Args:
        teacher: Name of the teacher. None, the default: the only teacher.
        distill_coef: Coefficient λ, >= 0; ``AdaptiveDistillCoefHook`` may change it during training.
            Defaults to 1.

    Attributes:
        distill_coef: Current λ.
        detach_student: Whether the student's outputs are detached, which trains the adapter only;
            ``DetachStudentHook`` sets it.
        is_measured: Whether the term's gradient into the student's features is measured;
            ``AdaptiveDistillCoefHook`` sets it.
        needs_head: Whether the term compares outputs of dense heads.

    Raises:
        ConfigError: if ``distill_coef`` is negative or not finite.
    """

    needs_head = False

    def __init__(self, teacher: str | None = None, distill_coef: float = 1.0) -> None:
        super().__init__()
        check('distill_coef', distill_coef, is_number(distill_coef), 'a number >= 0')
        self.teacher = teacher
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
