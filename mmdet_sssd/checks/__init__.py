"""Is my run sane? Checks of configs, annotations, images, checkpoints, and a rehearsal of the run."""

from .labels import CheckDatasetHook

__all__ = ['CheckDatasetHook']
