"""Plots of tables: which models are drawn, where, and with which values."""

import pytest

pytest.importorskip('matplotlib')

from dataclasses import asdict  # noqa: E402

import matplotlib  # noqa: E402

from ...analysis_tools import load  # noqa: E402

paper, tradeoff = load('paper'), load('tradeoff')

ROWS = [
    dict(name='Swin-T', top1=82.5, flops=5e9, inference_images_per_s=10.0, paper_inference=100),
    dict(name='Swin-S', top1=None, flops=4e9, inference_images_per_s=20.0, paper_inference=None),
    dict(name='Vim-S', top1=81.0, flops=3e9, inference_images_per_s=None, paper_inference=300),
]
IMAGENET = [asdict(row) for row in paper.TABLES['imagenet']]


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        tradeoff.plotting.use_style()
        yield


def points(figure):
    """The points of each panel, line by line."""
    return [[line.get_xydata().tolist() for line in ax.lines] for ax in figure.axes if ax.axison]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_accuracy_over_each_throughput():
    figure = tradeoff.draw_throughput(ROWS, 'Some CPU', '64 px')
    published, measured = figure.axes
    assert 'Published' in published.get_title('left') and 'Measured' in measured.get_title('left')
    assert 'Some CPU' in measured.get_xlabel() and '64 px' in measured.get_xlabel()
    assert points(figure) == [[[[100, 82.5]], [[300, 81.0]]], [[[10.0, 82.5]]]]
    assert texts(published) == ['Swin-T', 'Vim-S']
    assert 'no top-1 is quoted: Swin-S.' in figure.get_supxlabel()


def test_multiply_adds_if_nothing_was_timed():
    rows = [{key: row[key] for key in ('name', 'top1', 'flops')} for row in ROWS]
    assert points(tradeoff.draw_throughput(rows, '', '')) == [[[[5.0, 82.5]], [[3.0, 81.0]]]]


def test_a_line_for_the_sizes_of_a_family():
    figure = tradeoff.draw_throughput(IMAGENET, '', '')
    sizes = {line.get_color(): len(line.get_xdata()) for line in figure.axes[0].lines}
    assert len(figure.axes[0].lines) == 5 and set(sizes.values()) == {1, 3}
    names = texts(figure.axes[0])
    assert names[:3] == ['Swin-T', 'S', 'B'] and names.count('S') == names.count('B') == 4
    assert {'VMamba-T (s1)', 'VMamba-T (s2)', 'Vanilla-VMamba-T', 'Vim-S'} <= {*names}
    assert 'ConvNeXt-T' in figure.get_supxlabel()


def test_downstream_results_are_those_that_the_paper_lists():
    boxes, masks = points(tradeoff.draw_downstream(IMAGENET))
    assert [81.2, 42.7] in boxes[0] and [81.2, 44.4] in masks[0]  # Swin-T
    assert sum(map(len, boxes)) == sum(map(len, masks)) == 10


def test_values_of_tables():
    tables = {name: [asdict(row) for row in paper.TABLES[name]] for name in ('steps', 'init')}
    figure = tradeoff.draw_tables(tables, '', '')
    *steps, init = figure.axes
    assert texts(init) == ['82.60', '82.58', '82.67'] and len(steps) == 3
    assert [label.get_text() for label in init.get_yticklabels()] == ['mamba', 'random', 'zero']
    assert texts(steps[1])[0] == '426' and texts(steps[2])[-1] == '571'
    assert [text.get_text() for text in figure.texts][-1] == tradeoff.TITLES['init']


def test_pictures_of_several_tables():
    tables = {'imagenet': IMAGENET, 'models': ROWS}
    assert set(tradeoff.draw(tables, '', '')) == {'', '_downstream', '_tables'}
    assert set(tradeoff.draw({'models': ROWS}, '', '')) == {''}
