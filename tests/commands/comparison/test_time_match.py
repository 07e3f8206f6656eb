"""How long a schedule has to be to take as long as another arm's."""

import shutil

from mmengine.config import Config

from mmdet_sssd.commands.comparison.results import ResultsFolder
from mmdet_sssd.commands.comparison.time_match import match_note, matched_step_times, time_ratio
from mmdet_sssd.commands.step_times import StepTimes, write_step_times

from .synthetic import result

TIMES = {'longer': StepTimes([0.1, 0.2, 0.9], 10, 'CPU'), 'sssd': StepTimes([0.3], 10, 'CPU')}


def config(**loop) -> Config:
    return Config(dict(train_cfg=loop))


def test_the_ratio_is_that_of_median_step_times_iterations():
    epochs = config(max_epochs=4)
    assert time_ratio({'longer': epochs, 'sssd': epochs}, TIMES) == 1.5
    assert time_ratio({'longer': epochs, 'sssd': config(max_epochs=8)}, TIMES) == 3.0
    iterations = config(max_iters=20)
    assert time_ratio({'longer': iterations, 'sssd': epochs}, TIMES) == 3.0


def test_steps_without_the_teacher_take_as_long_as_stocks():
    epochs = config(max_epochs=4)
    times = {**TIMES, 'sssd': StepTimes([0.3], 10, 'CPU', idle=0.5)}
    assert time_ratio({'longer': epochs, 'sssd': epochs}, times) == 1.25
    assert '×1.25 as long: 0.3 s beside 0.2 s in 50% of its run, and as' in match_note(times)


def test_what_was_measured_is_measured_once_for_the_same_configs(tmp_path):
    measured = []
    results = ResultsFolder(tmp_path / 'results')

    def measure(files, out, log):
        measured.append([file.name for file in files])
        write_step_times(out, TIMES)

    def times(**configs):
        return matched_step_times(measure, configs, tmp_path / 'work', results)

    before = dict(longer=config(max_epochs=4), sssd=config(max_epochs=4))
    assert times(**before) == times(**before) == TIMES
    assert measured == [['longer.py', 'sssd.py']]
    times(**{**before, 'sssd': config(max_epochs=5)})
    assert len(measured) == 2

    result('longer', 0, 40.0).write(results.runs / 'longer/seed_0.json')
    results.pack()
    shutil.rmtree(results.runs)
    assert times(**{**before, 'sssd': config(max_epochs=5)}) == TIMES
    assert len(measured) == 2


def test_the_report_says_how_it_was_measured():
    assert match_note(TIMES).startswith(
        'longer was given the training time of sssd, whose mean step takes ×1.50 as long: 0.3 s beside '
        '0.2 s, medians of 3 steps of each'
    )
