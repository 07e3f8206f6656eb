from collections.abc import Iterator
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from ..checkpoints import export_student
from ..errors import ConfigError
from .model_parts import find_distiller


@HOOKS.register_module()
class ExportStudentHook(Hook):
    """Exports the student of the last and the best checkpoints after training.

    Each export is a stock checkpoint and a stock config (see
    :func:`mmdet_sssd.checkpoints.export_student`) in the work directory's folder ``export``. A failed
    export is logged and does not end the run.

    Raises:
        ConfigError: before the first iteration, if the model is not a distiller.
    """

    priority = 'LOWEST'  # after the CheckpointHook

    def before_train(self, runner: Runner) -> None:
        """Check that the model is a distiller."""
        find_distiller(runner, self)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Export, also after resuming a complete run."""
        folder, written = Path(runner.work_dir, 'export'), []
        for path in dict.fromkeys(_checkpoints(runner)):
            try:
                written += export_student(path, folder)
            except Exception as error:
                runner.logger.error(
                    f'The student of {path} was not exported: {error}. Training is complete; to try '
                    f'again, run `mmdet-sssd export {path} --out DIR`.',
                    exc_info=not isinstance(error, (ConfigError, FileNotFoundError)),
                )
        if older := sorted(x.name for x in folder.glob('*.p*') if x not in written):
            runner.logger.warning(f'{folder} has older exports, too: {", ".join(older)}')


def _checkpoints(runner: Runner) -> Iterator[str]:
    """Yield the last and the best checkpoints known to the runner's hooks."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            # A complete run that was resumed has saved nothing itself.
            last = hook.last_ckpt or runner.message_hub.get_info('last_ckpt')
            best = getattr(hook, 'best_ckpt_path_dict', {}).values()
            yield from filter(None, (last, getattr(hook, 'best_ckpt_path', None), *best))
