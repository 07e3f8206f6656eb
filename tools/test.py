"""What `mim test mmdet_sssd` calls: `mmdet-sssd test`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('test')
