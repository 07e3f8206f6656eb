"""What `mim run mmdet_sssd benchmark` calls: `mmdet-sssd benchmark`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('benchmark')
