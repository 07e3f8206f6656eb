"""What `mim run mmdet_sssd check_detectors` calls: `mmdet-sssd detectors`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('detectors')
