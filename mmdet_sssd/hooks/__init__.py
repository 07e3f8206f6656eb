from .adaptive_distill_coef_hook import AdaptiveDistillCoefHook
from .distill_phases_hook import DistillPhasesHook
from .eval_teacher_hook import EvalTeacherHook
from .export_student_hook import ExportStudentHook

__all__ = [
    'AdaptiveDistillCoefHook',
    'DistillPhasesHook',
    'EvalTeacherHook',
    'ExportStudentHook',
]
