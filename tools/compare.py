"""What `mim run mmdet_sssd compare` calls: `mmdet-sssd compare`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('compare')
