"""What is drawn where: curves and differences."""

import pytest

from mmdet_sssd.commands.comparison.plots import draw_curves, draw_differences, draw_plots
from mmdet_sssd.commands.comparison.summary import differences

from .synthetic import result, results


def line(axes, label):
    return next(x for x in axes.lines if str(x.get_label()).startswith(label))


def test_curves_are_means_with_the_range_over_seeds():
    (axes,) = draw_curves(results(baseline=[40.0, 42.0], sssd=[43.0, 44.0, 48.0])).axes
    assert list(line(axes, 'baseline (2 seeds)').get_ydata()) == [20.5, 41]
    assert list(line(axes, 'sssd (3 seeds)').get_ydata()) == [22.5, 45]
    band = axes.collections[1].get_paths()[0].vertices
    assert {y for x, y in band if x == 2} == {43, 48}


def test_curves_hold_what_all_seeds_have():
    found = results(baseline=[40.0, 42.0])
    found['baseline'][1].curve = [(2, 42.0), (4, 44.0)]
    (axes,) = draw_curves(found).axes
    assert line(axes, 'baseline').get_xydata().tolist() == [[2, 41]]


def test_differences_have_rows_for_sizes():
    found = {
        arm: {s: result(arm, s, ap + 3 * s * k, m=0.3) for s in range(2)}
        for arm, ap, k in (('baseline', 40, 0), ('sssd', 42, 1))
    }
    (axes,) = draw_differences(differences(found, 'val'), 'val').axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ['AP', 'AP50', 'APm']
    (drawn,) = axes.containers
    points, _, (bars,) = drawn
    assert points.get_xdata() == pytest.approx([3.5, 3.5, 0])
    assert list(points.get_ydata()) == [0, 1, 2]
    low, high = bars.get_segments()[0][:, 0]
    assert low < high
    assert (low + high) / 2 == pytest.approx(3.5)


def test_an_arm_has_one_colour_in_all_plots():
    found = results(baseline=[40.0, 41.0], lgd=[41.0, 43.0], sssd=[42.0, 44.0])
    (curves,) = draw_curves(found).axes
    (bars,) = draw_differences(differences(found, 'val'), 'val').axes
    for arm, drawn in zip(('lgd', 'sssd'), bars.containers, strict=True):
        assert line(curves, arm).get_color() == drawn[0].get_color()


def test_only_what_there_is_gets_drawn(tmp_path):
    (path,) = draw_plots(tmp_path, results(sssd=[40.0]))
    assert path.name == 'learning_curves.png'
    assert path.stat().st_size > 1000
