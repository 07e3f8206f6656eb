"""Runs `mmdet-sssd visualize` for `mim run mmdet_sssd visualize`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('visualize')
