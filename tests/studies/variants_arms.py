# Arms of compare for what variants.py defines.
imports = {'custom_imports.imports': ['mmdet_sssd', 'tests.studies.variants']}

arms = dict(
    no_adapter=dict(base='sssd', cfg_options={**imports, 'model.adapter': dict(type='NoAdapter')}),
    no_norm=dict(base='sssd', cfg_options={**imports, 'model.type': 'UnnormedDistiller'}),
    balanced_coef=dict(
        base='sssd',
        cfg_options={**imports, 'default_hooks.distill_coef': dict(type='BalancedCoefHook')},
    ),
)
