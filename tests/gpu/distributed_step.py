"""One process of a group: ``torchrun … -m tests.gpu.distributed_step``."""

from mmdet.utils import register_all_modules

import mmdet_sssd  # noqa: F401  (registers the package's modules)

from .runs import distributed_step

if __name__ == '__main__':
    register_all_modules()
    distributed_step()
