# Arms of compare for the variants in variants.py.
ungated = {'default_hooks.phases.teacher_must_lead': False}  # gentle as it was when these were run
imports = {'custom_imports.imports': ['mmdet_sssd', 'tests.studies.variants']}

arms = dict(
    no_adapter=dict(base='paper', cfg_options={**imports, 'model.adapter': dict(type='NoAdapter')}),
    no_norm=dict(base='paper', cfg_options={**imports, 'model.type': 'UnnormedDistiller'}),
    fading=dict(  # to zero at the end of the run, instead of stopping after its first half
        base='gentle',
        cfg_options={
            **imports,
            **ungated,
            'default_hooks.distill_coef': dict(_delete_=True, type='FadingCoefHook', ratio=0.25),
            'default_hooks.phases.teacher_until': 1.0,
        },
    ),
    half=dict(  # stock's step in the second half of the run
        base='paper',
        cfg_options={'default_hooks.phases.teacher_until': 0.5},
    ),
    bf16=dict(  # mixed precision, on a CPU too
        base='paper',
        cfg_options={'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'},
    ),
    no_gentle_adapter=dict(
        base='gentle', cfg_options={**imports, **ungated, 'model.adapter': dict(type='NoAdapter')}
    ),
    noisy_labels=dict(
        base='gentle', cfg_options={**imports, **ungated, 'model.teacher.type': 'NoisyLabelTeacher'}
    ),
    residual=dict(
        base='gentle', cfg_options={**imports, **ungated, 'model.teacher.type': 'ResidualTeacher'}
    ),
    own_classifier=dict(
        base='gentle',
        cfg_options={
            **imports,
            **ungated,
            'model.type': 'OwnClassifierDistiller',
            'model.teacher_head_grad': 1.0,
        },
    ),
    head_outputs=dict(
        base='gentle',
        cfg_options={
            **ungated,
            'model.terms': dict(logits=dict(type='LogitTerm', teacher='teacher')),
        },
    ),
)
