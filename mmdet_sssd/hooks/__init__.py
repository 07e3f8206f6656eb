from .adaptive_distill_coef_hook import AdaptiveDistillCoefHook
from .eval_teacher_hook import EvalTeacherHook
from .export_student_hook import ExportStudentHook
from .phase_hooks import DetachStudentHook, FreezeBackboneHook, TeacherScheduleHook

__all__ = [
    'AdaptiveDistillCoefHook',
    'DetachStudentHook',
    'EvalTeacherHook',
    'ExportStudentHook',
    'FreezeBackboneHook',
    'TeacherScheduleHook',
]
