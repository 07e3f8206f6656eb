# The built-in arms of `compare`, in the form that --arms-file takes too. An arm has
#   base         another arm; or 'student', the detector of CONFIG alone; or 'distiller', CONFIG with
#                its distiller, or with the one that `wrap --recipe paper` adds; or 'recommended',
#                CONFIG with its distiller, or with what the arm gentle adds
#   cfg_options  changes to the base's config, as in --cfg-options; a dict with another type replaces
#                the one it would be merged into; stretch=1.5 makes the run, and its schedule, 1.5 times
#                as long
JS = dict(type='JSDistanceLoss')
STEP = dict(type='AdaptiveDistillCoefHook', policy='step')
CONSTANT = dict(type='AdaptiveDistillCoefHook', policy='constant')

arms = dict(
    baseline=dict(base='student'),
    config=dict(base='recommended'),
    gentle=dict(  # the gentle recipe of `wrap`
        base='distiller',
        cfg_options={
            'model.economy': True,
            'model.teacher_head_grad': {'cls|centerness|iou|obj|heat|rpn_head|roi_head': 0},
            'default_hooks.distill_coef.ratio': 0.25,
            'default_hooks.freeze_backbone': dict(type='FreezeBackboneHook', first=0.0),
            'default_hooks.teacher_schedule': dict(type='TeacherScheduleHook', until=0.5),
        },
    ),
    papers=dict(  # without what the gentle recipe sets
        base='distiller',
        cfg_options={
            'model.economy': False,
            'model.teacher_head_grad': 1.0,
            'default_hooks.distill_coef.ratio': None,
            'default_hooks.teacher_schedule': dict(type='TeacherScheduleHook', until=1.0),
        },
    ),
    sssd=dict(
        base='distiller',
        cfg_options={
            'model.teacher.soft_regions': True,
            'model.distill_loss': JS,
            'default_hooks.distill_coef': STEP,
        },
    ),
    sssd_paper=dict(
        base='papers',
        cfg_options={
            'model.teacher.soft_regions': True,
            'model.distill_loss': JS,
            'default_hooks.distill_coef': STEP,
        },
    ),
    sssd_economy=dict(base='sssd', cfg_options={'model.economy': True}),
    sssd_channel=dict(base='sssd', cfg_options={'model.distill_loss.dim': 'channel'}),
    sssd_all=dict(base='sssd', cfg_options={'model.distill_loss.dim': 'all'}),
    sssd_fixed=dict(base='sssd', cfg_options={'default_hooks.distill_coef': CONSTANT}),
    sssd_no_phases=dict(
        base='sssd',
        cfg_options={
            'default_hooks.detach_student': dict(type='DetachStudentHook', first=0.0, last=0.0),
            'default_hooks.freeze_backbone': dict(type='FreezeBackboneHook', first=0.0),
        },
    ),
    lgd=dict(
        base='papers',
        cfg_options={
            'model.teacher.soft_regions': False,
            'model.distill_loss': dict(_delete_=True, type='NormedMSELoss'),
            'default_hooks.distill_coef': CONSTANT,
        },
    ),
    baseline_longer=dict(base='baseline', cfg_options=dict(stretch=1.9)),  # about the time of sssd
)
