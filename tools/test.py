"""Runs `mmdet-sssd test` for `mim test mmdet_sssd`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('test')
