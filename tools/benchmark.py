"""Runs `mmdet-sssd benchmark` for `mim run mmdet_sssd benchmark`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('benchmark')
