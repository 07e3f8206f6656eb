"""What `mim run mmdet_sssd wrap_config` calls: `mmdet-sssd wrap`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('wrap')
