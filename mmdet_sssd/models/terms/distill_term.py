from abc import ABCMeta, abstractmethod

from mmdet.structures import SampleList
from mmengine.model import BaseModule
from torch import Tensor

from ...errors import check, is_number
from ..outputs import DetectorOutputs


class DistillTerm(BaseModule, metaclass=ABCMeta):
    """Compares the student's outputs with those of one of its teachers.

    The distiller builds a term of a class derived from this one as ``cls(blank, **settings)``, with a
    :class:`~mmdet_sssd.models.blank_pass.BlankPass` to read student and teacher off.

    Args:
        teacher: Name of the teacher. None, the default: the only one.
        distill_coef: Its coefficient λ, >= 0; ``AdaptiveDistillCoefHook`` may change it during
            training. Defaults to 1.

    Attributes:
        distill_coef: λ as it is now.
        detach_student: Whether the student's outputs are detached, so that an adapter alone is
            trained; ``DetachStudentHook`` sets it.
        is_measured: Whether the gradient that it sends into the student's features is measured;
            ``AdaptiveDistillCoefHook`` sets it.
        needs_head: Whether the outputs of the dense heads are compared too.

    Raises:
        ConfigError: if λ is negative.
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
        """Compare what student and teacher make of the same images.

        Args:
            student: The student's outputs.
            teacher: The teacher's, without gradient.
            batch_inputs: The images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples.

        Returns:
            ``loss``, a scalar without λ, and scalars that are logged beside it.
        """
