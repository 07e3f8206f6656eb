"""Several distillation terms in one model, each with a coefficient and phases of its own."""

from mmengine.hooks import Hook

from ..distillers import SSIM, assert_equal, pretrained
from ..toy_detector import TOY_MODEL, toy_runner

JS = dict(type='FeatureTerm', distill_loss=dict(type='JSDistanceLoss'), normalize=True)
MODEL = TOY_MODEL | dict(
    teachers=dict(large=pretrained()),
    terms=dict(
        ssim={**SSIM, 'teacher': 'large', 'distill_coef': 5.0},
        js={**JS, 'teacher': 'large', 'distill_coef': 1.0},
    ),
)
DROP = dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.1)
COEF = dict(type='AdaptiveDistillCoefHook')
LOGGED = ('distill_coef', 'ssim_coef', 'js_coef')


class Recorder(Hook):
    """Notes after each epoch what was logged last, and what is detached."""

    def __init__(self):
        self.rows = []

    def after_train_epoch(self, runner):
        terms = runner.model.terms
        scalars = [runner.message_hub.get_scalar(f'train/{name}').current() for name in LOGGED]
        detached = [terms[x].detach_student for x in ('distill', 'ssim', 'js')]
        self.rows.append((*scalars, detached))


def run(work_dir, epochs, **kwargs):
    recorder = Recorder()
    hooks = [
        COEF | dict(factor=3.0),
        COEF | dict(term='ssim', factor=0.5),
        COEF | dict(term='js', policy='constant'),
        dict(type='DistillPhasesHook', teacher='large', detach_student=0.5),
        recorder,
    ]
    runner = toy_runner(
        work_dir,
        model=MODEL,
        hooks=hooks,
        schedulers=[DROP],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        epochs=epochs,
        **kwargs,
    )
    runner.train()
    return recorder.rows, runner


def test_each_term_has_its_coefficient_and_phase_also_after_a_resume(tmp_path):
    expected = [
        (2, 5, 1, [False, True, True]),
        (2, 5, 1, [False, True, True]),
        (6, 2.5, 1, [False, False, False]),
        (6, 2.5, 1, [False, False, False]),
    ]
    rows, whole = run(tmp_path / 'whole', 4)
    assert rows == expected
    checkpoint = str(tmp_path / 'whole/epoch_3.pth')
    rows, resumed = run(tmp_path / 'resumed', 4, resume=True, load_from=checkpoint)
    assert rows == expected[3:]
    assert_equal(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
