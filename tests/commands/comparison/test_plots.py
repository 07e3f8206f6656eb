"""What is drawn where: curves, differences, times, sweeps."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mmdet_sssd.commands.comparison.plots import (
    draw_curves,
    draw_differences,
    draw_plots,
    draw_sweep,
    draw_time,
    find_sweeps,
)
from mmdet_sssd.commands.comparison.summary import summarize

from .synthetic import result, results


def line(axes, label):
    return next(x for x in axes.lines if str(x.get_label()).startswith(label))


def test_curves_are_means_with_the_range_over_seeds():
    (axes,) = draw_curves(results(baseline=[40.0, 42.0], sssd=[43.0, 44.0, 48.0])).axes
    assert list(line(axes, 'baseline (2 seeds)').get_ydata()) == [20.5, 41]
    assert list(line(axes, 'sssd (3 seeds)').get_ydata()) == [22.5, 45]
    band = axes.collections[1].get_paths()[0].vertices
    assert {y for x, y in band if x == 2} == {43, 48}


def test_each_arm_has_a_panel_with_the_baseline():
    figure = draw_curves(results(baseline=[40.0], a=[41.0], b=[42.0], c=[43.0], d=[44.0]))
    assert [axes.get_title() for axes in figure.axes] == list('abcd')
    assert all(line(axes, 'baseline (1 seed)') for axes in figure.axes)


def test_titles_of_neighbours_do_not_run_into_each_other():
    long = 'sssd+soft_regions=False+detach_appearance=True'
    arms = {f'{long}+distill_coef={coef}': [41.0, 42.0] for coef in (1, 3)}
    cells = results(baseline=[40.0, 41.0], **arms)
    for figure in (draw_curves(cells), draw_differences(summarize(cells, 'val'), 'val')):
        FigureCanvasAgg(figure).draw()
        left, right = (axes.title.get_window_extent() for axes in figure.axes)
        assert left.x1 < right.x0


def test_curves_of_seeds_that_were_validated_elsewhere_meet_where_both_were():
    cells = results(baseline=[40.0, 42.0])
    cells['baseline'][1].curve = [(2, 42.0), (4, 44.0)]
    (axes,) = draw_curves(cells).axes
    assert line(axes, 'baseline').get_xydata().tolist() == [[2, 41]]


def test_differences_have_rows_for_sizes_and_classes():
    cells = {
        arm: {
            s: result(arm, s, ap + s * s, m=0.3, classes={'cat': ap + k * s, 'dog': ap})
            for s in range(2)
        }
        for arm, ap, k in (('baseline', 40, 1), ('sssd', 42, 4))
    }
    (axes,) = draw_differences(summarize(cells, 'val'), 'val').axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ['AP', 'AP50', 'APm', 'cat', 'dog']
    points = [x.get_xydata()[0].tolist() for x in axes.lines if x.get_marker() == 'o']
    assert [row for _, row in points] == [0, 1, 2, 3, 4]
    assert [x for x, _ in points] == pytest.approx([2, 2, 0, 3.5, 2])
    intervals = [
        x.get_xdata() for x in axes.lines if x.get_linewidth() == 2 and len(x.get_xdata()) == 2
    ]
    low, high = next(x for x in intervals if x[0] < x[1])
    assert (low + high) / 2 == pytest.approx(3.5)


def test_of_many_classes_those_that_differ_most_are_drawn():
    cells = {
        arm: {0: result(arm, 0, 40, classes={f'class {i}': 10 + k * i for i in range(50)})}
        for arm, k in (('baseline', 0), ('sssd', 1))
    }
    (axes,) = draw_differences(summarize(cells, 'val'), 'val').axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[2:] == [f'class {i}' for i in range(49, 29, -1)]


def test_ap_against_time_in_a_readable_unit():
    cells = {'baseline': {0: result('baseline', 0, 40, seconds=5400)}}
    cells['sssd'] = {0: result('sssd', 0, 42, seconds=10800)}
    cells['sssd+tau=2'] = {0: result('sssd+tau=2', 0, 42)}  # a sweep has a plot of its own
    (axes,) = draw_time(cells, 'val').axes
    assert axes.get_xlabel() == 'training time (h, without validation)'
    points = {x.get_xydata()[0].tolist()[0]: x.get_xydata()[0].tolist()[1] for x in axes.lines[:4]}
    assert points == {1.5: 40, 3.0: 42}


@pytest.mark.parametrize(
    ('values', 'scale', 'positions'),
    [
        (['1', '3', '10'], 'log', [1, 3, 10]),
        (['1', '2', '3'], 'linear', [1, 2, 3]),
        (['0', '1', '10'], 'symlog', [0, 1, 10]),
        (['-1', '1', '10'], 'linear', [-1, 1, 10]),
        (['spatial', 'channel'], 'linear', [0, 1]),
    ],
)
def test_the_axis_of_a_sweep(values, scale, positions):
    arms = {value: f'sssd+x={value}' for value in values}
    cells = results(baseline=[40.0, 42.0], sssd=[42.0, 43.0])
    cells |= results(**{arm: [41.0, 43.0] for arm in arms.values()})
    assert find_sweeps(cells) == {'sssd+x': arms}
    (axes,) = draw_sweep('sssd+x', arms, cells, 'val').axes
    assert axes.get_xscale() == scale
    assert list(axes.get_xticks()) == positions
    assert [label.get_text() for label in axes.get_xticklabels()] == values
    assert line(axes, 'baseline (n=2)').get_ydata()[0] == 41
    assert line(axes, 'sssd (n=2)').get_ydata()[0] == 42.5


def test_one_value_is_no_sweep():
    assert find_sweeps(['sssd+tau=2', 'sssd+dim=all', 'sssd', 'lgd+tau=3']) == {}


def test_only_what_there_is_gets_drawn(tmp_path):
    names = {path.name for path in draw_plots(tmp_path, results(sssd=[40.0]))}
    assert names == {'learning_curves.png', 'ap_against_time_val.png'}
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)
