# Inherited by every config with a distiller. Recipes are modules of mmdet_sssd.recipes:
#   from mmdet_sssd.recipes import paper as recipe
#   model = dict(recipe.model, _delete_=True, student=_base_.model)
#   default_hooks = recipe.hooks
custom_imports = dict(imports=['mmdet_sssd'], allow_failed_imports=False)
