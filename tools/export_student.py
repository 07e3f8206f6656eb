"""What `mim run mmdet_sssd export_student` calls: `mmdet-sssd export`."""

from mmdet_sssd_cli import main

if __name__ == '__main__':
    main('export')
