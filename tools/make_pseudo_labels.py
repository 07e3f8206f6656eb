"""Runs `mmdet-sssd pseudo-labels` for `mim run mmdet_sssd make_pseudo_labels`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('pseudo-labels')
