"""Settings of the configs for one's own data, which they read from environment variables."""

import os
import os.path as osp

from ..errors import ConfigError, did_you_mean

VARIABLES = (
    'SSSD_DATA_ROOT',
    'SSSD_TRAIN_ANN',
    'SSSD_VAL_ANN',
    'SSSD_TEST_ANN',
    'SSSD_TRAIN_IMG',
    'SSSD_VAL_IMG',
    'SSSD_TEST_IMG',
    'SSSD_UNLABELLED_ANN',
    'SSSD_UNLABELLED_IMG',
    'SSSD_TEACHER_CONFIG',
    'SSSD_TEACHER_CHECKPOINT',
    'SSSD_MAX_EPOCHS',
    'SSSD_BATCH_SIZE',
    'SSSD_IMAGE_SCALE',
)
"""Environment variables that the own-data configs read."""


def check_variables() -> None:
    """Check the environment for misspelt variables, and for test labels without their images.

    Raises:
        ConfigError: if one resembles a name in :data:`VARIABLES`, or ``SSSD_TEST_ANN`` is set without
            ``SSSD_TEST_IMG`` where each part of the data has its own folder of images.
    """
    for name in {name for name in os.environ if name.startswith('SSSD_')} - {*VARIABLES}:
        if hint := did_you_mean(name, VARIABLES):
            raise ConfigError(f'{name} is set in the environment, but nothing reads it{hint}')
    train, val, test = (os.environ.get(f'SSSD_{part}_IMG') for part in ('TRAIN', 'VAL', 'TEST'))
    if os.environ.get('SSSD_TEST_ANN') and not test and train != val:
        raise ConfigError(
            'SSSD_TEST_ANN is set in the environment, but SSSD_TEST_IMG, the folder of its images, is '
            f'not; SSSD_TRAIN_IMG is {train}, SSSD_VAL_IMG {val}'
        )


def positive_integers(text: str, set_by: str, count: int = 1, least: int = 1) -> tuple[int, ...]:
    """Parse whole numbers separated by ``x``.

    Args:
        text: The variable's value, such as ``'24'`` or ``'1333x800'``.
        set_by: Name of the environment variable, for the error.
        count: Required number of numbers.
        least: Lowest accepted number, >= 1.

    Raises:
        ConfigError: if the text has another form or a number is too low.
    """
    parts = text.split('x')
    if len(parts) != count or not all(x.isdecimal() and int(x) >= least for x in parts):
        accepted = 'a whole number' if count == 1 else f'{count} whole numbers, joined by x, each'
        raise ConfigError(
            f'{set_by} is {text!r} in the environment; accepted: {accepted} of {least} or more'
        )
    return tuple(int(part) for part in parts)


def read_teacher(default: str) -> dict[str, str]:
    """Read the pretrained teacher from the environment.

    Args:
        default: Path of the config if ``SSSD_TEACHER_CONFIG`` is not set.

    Returns:
        The config of a ``PretrainedTeacher``.

    Raises:
        ConfigError: if ``SSSD_TEACHER_CHECKPOINT`` is not set.
    """
    config = os.environ.get('SSSD_TEACHER_CONFIG') or osp.normpath(default)
    checkpoint = os.environ.get('SSSD_TEACHER_CHECKPOINT')
    if not checkpoint:
        raise ConfigError(
            'SSSD_TEACHER_CHECKPOINT is not set in the environment; set it to the weights of '
            f'{config}, a file or address (`mmdet-sssd train {osp.basename(default)}` trains a '
            'teacher), or SSSD_TEACHER_CONFIG and SSSD_TEACHER_CHECKPOINT to a detector of your own'
        )
    return dict(type='PretrainedTeacher', config=config, checkpoint=checkpoint)
