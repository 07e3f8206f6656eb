"""Runs `mmdet-sssd wrap` for `mim run mmdet_sssd wrap_config`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('wrap')
