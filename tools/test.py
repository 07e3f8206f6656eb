"""Evaluate a checkpoint: `mim test mmdet_sssd CONFIG`, or this file with mmdet's arguments."""

from mmdet_sssd.commands.mmdet_tools import run_mmdet_tool

if __name__ == '__main__':
    run_mmdet_tool('test', stages=('test',))
