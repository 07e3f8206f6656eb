"""Runs `mmdet-sssd compare` for `mim run mmdet_sssd compare`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('compare')
