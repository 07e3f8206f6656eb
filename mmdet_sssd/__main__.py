"""``python -m mmdet_sssd`` is ``mmdet-sssd``."""

import sys

from mmdet_sssd_cli import main

if __name__ == '__main__':
    del sys.modules['mmdet_sssd']  # an empty one, see its file; a command imports it whole
    main()
