"""Colors, labels and files of plots."""

import pytest

pytest.importorskip('matplotlib')

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

from mmvmamba.analysis import plotting  # noqa: E402


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plotting.use_style()
        yield


def boxes(ax):
    """The boxes (left, bottom, right, top) of the labels in the axes, in pixels."""
    figure = ax.figure
    figure.draw_without_rendering()
    return [text.get_window_extent().extents for text in ax.texts]


def overlap(a, b):
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def panel(xs, ys):
    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    ax.plot(xs, ys, 'o')
    ax.margins(0.3)
    figure.draw_without_rendering()
    return ax


@pytest.mark.parametrize(
    ('name', 'family'),
    [
        ('VMamba-T (s1l8)', 'VMamba'),
        ('mmvmamba::vmamba/vanilla-vmamba-t_8xb128_in1k.py', 'Vanilla-VMamba'),
        ('mmvmamba::comparison/s4nd-convnext-t_8xb128_in1k.py', 'S4ND'),
        ('convnext-tiny_32xb128_in1k', 'ConvNeXt'),
        ('mmvmamba::comparison/vim-s_8xb128_in1k.py', 'Vim'),
        ('torch.nn:AvgPool2d+kernel_size=4', None),
    ],
)
def test_family(name, family):
    assert plotting.family_of(name) == family


def test_colors_are_those_of_families_or_differ():
    colors = plotting.colors_of(['Swin-T', 'Swin-S', 'mine', 'yours'])
    assert colors['Swin-T'] == colors['Swin-S'] == plotting.COLORS['Swin']
    assert len({*colors.values()}) == 3


@pytest.mark.parametrize('write', [plotting.label_line_ends, plotting.label_points])
def test_labels_of_close_points_do_not_overlap(write):
    points = [(1, 1), (1.02, 1.01), (1.04, 1.005), (1, 0.99)]
    ax = panel(*zip(*points, strict=True))
    write(ax, [(*point, f'model {i}', 'red') for i, point in enumerate(points)])
    found = boxes(ax)
    assert len(found) == 4
    assert not any(overlap(a, b) for i, a in enumerate(found) for b in found[:i])


def test_a_label_at_the_edge_stays_inside():
    ax = panel([0, 1], [0, 1])
    ax.set_xlim(0, 1.001)
    plotting.label_points(ax, [(1, 1, 'the fastest', 'red')])
    ((*_, right, _),) = boxes(ax)
    assert right <= ax.bbox.x1 + 1


@pytest.mark.parametrize('large', [0, 10**9])
def test_a_large_picture_gets_few_colors(large, tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, 'LARGE', large)
    ax = panel([0, 1], [0, 1])
    ax.imshow(np.random.default_rng(0).random((50, 50)))
    plotting.save(ax.figure, tmp_path / 'new' / 'plot.png')
    with Image.open(tmp_path / 'new' / 'plot.png') as image:
        colors = image.convert('RGB').getcolors(2**24)
        assert image.size == (800, 600) and len(colors) <= (256 if large else 128)
