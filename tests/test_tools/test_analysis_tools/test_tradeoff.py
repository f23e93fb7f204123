"""Accuracies over throughput: which points and lines are drawn."""

import pytest

pytest.importorskip('matplotlib')

from ...analysis_tools import load  # noqa: E402

paper, tradeoff = load('paper'), load('tradeoff')

ROWS = [
    dict(name='a', top1=82.5, flops=5e9, inference_images_per_s=10.0, paper_inference=100),
    dict(name='b', top1=None, flops=4e9, inference_images_per_s=20.0, paper_inference=None),
    dict(name='c', top1=81.0, flops=3e9, inference_images_per_s=None, paper_inference=300),
]


def drawn(group):
    """The points of each panel, a coordinate of which is missing where it is a line."""
    panels = []
    for place in tradeoff.draw([group]).subfigs[0].axes:
        points = []
        for line in place.lines:
            x, y = line.get_xdata(), line.get_ydata()
            points.append((x[0] if len({*x}) == 1 else None, y[0] if len({*y}) == 1 else None))
        panels.append(points)
    return panels


def test_each_throughput_that_is_there():
    (group,) = tradeoff.groups_of('title', ROWS)
    assert group.panels == [('inference_images_per_s', 'top1'), ('paper_inference', 'top1')]
    assert drawn(group) == [[(10.0, 82.5), (20.0, None)], [(100, 82.5), (300, 81.0)]]


def test_multiply_adds_where_nothing_was_timed():
    rows = [dict(name=row['name'], top1=row['top1'], flops=row['flops']) for row in ROWS]
    (group,) = tradeoff.groups_of('title', rows)
    assert drawn(group) == [[(5.0, 82.5), (4.0, None), (3.0, 81.0)]]


def test_downstream_results_are_those_that_the_paper_lists():
    _, group = tradeoff.groups_of('title', [vars(row) for row in paper.TABLES['imagenet']])
    assert len(group.rows) == 10
    boxes, masks = drawn(group)
    assert (82.60, 47.3) in boxes and (82.60, 47.9) in masks
    assert (None, 42.7) in boxes and (None, 44.4) in masks  # Swin-T, without an accuracy


def test_a_legend_for_each_line_of_panels():
    groups = [group for name in ('first', 'second') for group in tradeoff.groups_of(name, ROWS)]
    figure = tradeoff.draw(groups)
    texts = [[text.get_text() for text in part.legends[0].texts] for part in figure.subfigs]
    assert texts == [['a', 'b', 'c']] * 2
