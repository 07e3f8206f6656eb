"""Lets configs inherit from this package's: ``_base_ = ['mmdet_sssd::_base_/sssd.py']``.

mmengine resolves ``package::path`` only for packages on a list of its own.
"""

from mmengine.config.utils import MODULE2PACKAGE

MODULE2PACKAGE['mmdet_sssd'] = 'mmdet_sssd'
