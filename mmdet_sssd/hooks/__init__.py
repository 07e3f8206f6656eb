from .adaptive_distill_coef_hook import AdaptiveDistillCoefHook
from .eval_teacher_hook import EvalTeacherHook
from .export_student_hook import ExportStudentHook
from .phase_hooks import DetachStudentHook, FreezeBackboneHook, TeacherScheduleHook
from .preemption_hook import PreemptionHook
from .random_state_hook import RandomStateHook
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = [
    'AdaptiveDistillCoefHook',
    'DetachStudentHook',
    'EvalTeacherHook',
    'ExportStudentHook',
    'FreezeBackboneHook',
    'PreemptionHook',
    'RandomStateHook',
    'SafeCheckpointHook',
    'TeacherScheduleHook',
]
