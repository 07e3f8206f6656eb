"""Runs `mmdet-sssd train` for `mim train mmdet_sssd`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('train')
