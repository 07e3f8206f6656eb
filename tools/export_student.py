"""Runs `mmdet-sssd export` for `mim run mmdet_sssd export_student`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('export')
