"""What `mim train mmdet_sssd` calls: `mmdet-sssd train`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('train')
