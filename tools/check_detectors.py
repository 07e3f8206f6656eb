"""Runs `mmdet-sssd detectors` for `mim run mmdet_sssd check_detectors`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('detectors')
