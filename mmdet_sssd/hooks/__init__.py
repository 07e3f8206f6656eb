from .adaptive_distill_coef_hook import AdaptiveDistillCoefHook
from .distill_phases_hook import DistillPhasesHook
from .eval_teacher_hook import EvalTeacherHook
from .export_student_hook import ExportStudentHook
from .separate_clipping_hook import SeparateClippingHook

__all__ = [
    'AdaptiveDistillCoefHook',
    'DistillPhasesHook',
    'EvalTeacherHook',
    'ExportStudentHook',
    'SeparateClippingHook',
]
