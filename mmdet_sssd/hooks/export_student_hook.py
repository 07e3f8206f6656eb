import os.path as osp
from collections.abc import Iterator

from mmdet.registry import HOOKS
from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from ..checkpoints import export_student
from ..errors import ConfigError
from .distiller_of import distiller_of


@HOOKS.register_module()
class ExportStudentHook(Hook):
    """Exports the last and the best checkpoints' student when training is done.

    The files, a stock checkpoint and a stock config each (see
    :func:`mmdet_sssd.checkpoints.export_student`), lie in ``export`` in the work directory. A
    checkpoint that cannot be exported is reported; the run ends as it would have.

    Raises:
        ConfigError: before the first iteration, if the model is no distiller.
    """

    priority = 'LOWEST'  # after the CheckpointHook

    def before_train(self, runner: Runner) -> None:
        """Check that there is a student to export."""
        distiller_of(runner, self)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Export, also when a run is resumed that was complete already."""
        for path in dict.fromkeys(_checkpoints(runner)):
            try:
                export_student(path, osp.join(runner.work_dir, 'export'))
            except Exception as error:
                runner.logger.error(
                    f'The student of {path} was not exported: {error}. Training is complete and its '
                    f'checkpoints are not affected; try `mmdet-sssd export {path} '
                    '--out DIR`.',
                    exc_info=not isinstance(error, (ConfigError, FileNotFoundError)),
                )


def _checkpoints(runner: Runner) -> Iterator[str]:
    """Name the last and the best checkpoints that the runner's hooks know of."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            # A resumed run that had nothing left to train has saved nothing itself.
            last = hook.last_ckpt or runner.message_hub.get_info('last_ckpt')
            best = getattr(hook, 'best_ckpt_path_dict', {}).values()
            yield from filter(None, (last, getattr(hook, 'best_ckpt_path', None), *best))
