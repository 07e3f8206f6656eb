"""The documentation site: ``sphinx-build -W docs docs/_build``."""

from mmdet_sssd import __version__

project = 'mmdet_sssd'
author = 'The mmdet_sssd developers'
release = version = __version__

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 4
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_typehints = 'signature'
nb_execution_mode = 'off'  # notebooks are shown with the outputs that they were committed with
html_theme = 'furo'
html_title = 'mmdet_sssd'
html_static_path = ['_static']
html_css_files = ['site.css']
exclude_patterns = ['_build', '**/work_dirs']
suppress_warnings = ['toc.not_included']  # reports are reached from the benchmarks' page
