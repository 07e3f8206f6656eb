from .detector_teacher import DetectorTeacher
from .implicit_teacher import ImplicitTeacher
from .pretrained_teacher import PretrainedTeacher
from .teacher import Teacher

__all__ = ['DetectorTeacher', 'ImplicitTeacher', 'PretrainedTeacher', 'Teacher']
