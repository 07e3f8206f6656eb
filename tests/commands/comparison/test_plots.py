"""What is drawn where: curves and differences."""

import pytest

from mmdet_sssd.commands.comparison.plots import (
    draw_curves,
    draw_differences,
    draw_plots,
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


def test_curves_hold_what_all_seeds_have():
    found = results(baseline=[40.0, 42.0])
    found['baseline'][1].curve = [(2, 42.0), (4, 44.0)]
    (axes,) = draw_curves(found).axes
    assert line(axes, 'baseline').get_xydata().tolist() == [[2, 41]]


def test_differences_have_rows_for_sizes_and_classes():
    found = {
        arm: {
            s: result(arm, s, ap + s * s, m=0.3, classes={'cat': ap + k * s, 'dog': ap})
            for s in range(2)
        }
        for arm, ap, k in (('baseline', 40, 1), ('sssd', 42, 4))
    }
    (axes,) = draw_differences(summarize(found, 'val'), 'val').axes
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
    found = {
        arm: {0: result(arm, 0, 40, classes={f'class {i}': 10 + k * i for i in range(50)})}
        for arm, k in (('baseline', 0), ('sssd', 1))
    }
    (axes,) = draw_differences(summarize(found, 'val'), 'val').axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[2:] == [f'class {i}' for i in range(49, 29, -1)]


def test_only_what_there_is_gets_drawn(tmp_path):
    (path,) = draw_plots(tmp_path, results(sssd=[40.0]))
    assert path.name == 'learning_curves.png'
    assert path.stat().st_size > 1000
