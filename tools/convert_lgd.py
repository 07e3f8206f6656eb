"""Runs `mmdet-sssd convert-lgd` for `mim run mmdet_sssd convert_lgd`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('convert-lgd')
