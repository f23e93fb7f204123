"""Plans of the launches: sweeps, tiles, grids, and what decides whether Triton compiles again."""

import itertools

import pytest
import torch

from mmvmamba.ops import triton as package
from mmvmamba.ops.scan_orders import COLUMN, COLUMN_REVERSED, ROW, ROW_REVERSED, resolve_pattern

from ..cases import selective_inputs, ss2d_inputs

if reason := package.package_error():
    pytest.skip(reason, allow_module_level=True)

from triton.backends.compiler import GPUTarget

from mmvmamba.ops.triton import launch

TARGET = GPUTarget('cuda', 90, 32)
PATTERNS = ['cross', 'unidirectional', 'bidirectional', (1,), (3, 0), (2, 2, 1), (0, 1, 2)]


def ss2d_plan(*size, pattern='cross', backward=False, dtype=torch.float16, **options):
    """Return the launches of a scan of a map, without memory."""
    inputs = ss2d_inputs(1, 1, pattern=pattern, dtype=dtype, **options)
    expand = {name: inputs[name].to('meta').expand(-1, *size, *inputs[name].shape[3:])
              for name in ('x', 'proj')}  # fmt: skip
    tensors = [v.to('meta') for v in (inputs | expand).values()]
    scan = launch.ss2d_scan_inputs(*tensors, resolve_pattern(pattern), TARGET)
    return scan, plan(scan, backward)


def sequence_plan(length, backward=False, **options):
    """Return the launches of a scan of sequences, without memory."""
    inputs = selective_inputs(length, dtype=torch.float16, z=False, **options)
    inputs = {k: v if v is None else v.to('meta') for k, v in inputs.items() if k != 'z'}
    for name in 'BC':
        if inputs[name].dim() == 3:
            inputs[name] = inputs[name].unsqueeze(1)
    scan = launch.selective_scan_inputs(*inputs.values(), True, TARGET)
    return scan, plan(scan, backward, torch.empty(1, device='meta'))


def plan(scan, backward, last_state=None):
    y = torch.empty_like(scan.x)
    if backward:
        return list(launch.plan_backward(scan, y, launch.Gradients.allocate(scan)))
    return list(launch.plan_forward(scan, y, last_state))


@pytest.mark.parametrize(
    'orders', [o for n in (1, 2, 3, 4) for o in itertools.product(range(4), repeat=n)] + [(2,) * 9]
)
def test_each_direction_is_in_one_sweep_along_its_axis(orders):
    found = []
    for sweep in launch.plan_sweeps(orders):
        assert (sweep.forwards, sweep.backwards) != (None, None)
        forwards, backwards = (COLUMN, COLUMN_REVERSED) if sweep.columns else (ROW, ROW_REVERSED)
        for k, order in ((sweep.forwards, forwards), (sweep.backwards, backwards)):
            if k is not None:
                assert orders[k] == order
                found.append(k)
    assert sorted(found) == list(range(len(orders)))
    # As few sweeps as the most frequent order of each axis needs.
    most = max(map(orders.count, (ROW, ROW_REVERSED)))
    most += max(map(orders.count, (COLUMN, COLUMN_REVERSED)))
    assert len(launch.plan_sweeps(orders)) == most


@pytest.mark.parametrize('tiles', [launch.FORWARD_TILES, launch.BACKWARD_TILES])
@pytest.mark.parametrize('channels', [1, 17, 32, 64, 96, 100, 192])
def test_tiles_hold_a_whole_sequence_or_cut_it(tiles, channels):
    for length in range(1, 400):
        tile, whole = launch.choose_tile(tiles, length, channels)
        assert whole == (length <= tile.positions)
        assert whole or length > max(t.positions for t in tiles[:2])
        # Products of the GPU's matrix units have sides of 16 at least.
        assert tile.rows >= 16 and tile.channels >= 16 and tile.warps >= 1


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (5, 60), (31, 13)], ids=str)
@pytest.mark.parametrize('channels', [1, 17, 96])
def test_programs_cover_all_chunks_and_channels(size, channels, backward):
    scan, launches = ss2d_plan(*size, channels=channels, batch=3, backward=backward)
    for item in launches:
        constants, args = item.constants, item.args
        blocks = -(-channels // constants['BC'])
        if 'subchunks' in args and 'length' not in args:  # the combination
            assert item.grid == (3 * 4 * constants['S'] * blocks,)
            continue
        positions = constants['T'] * constants['J']
        assert args['subchunks'] * constants['J'] >= args['length'] == size[0] * size[1]
        chunks = -(-args['length'] // positions)
        assert args['chunks'] == chunks
        assert item.grid == (-(-3 * chunks // item.trips) * blocks,)
        assert constants['SHORT_LINES'] == (constants['COLUMNS'] and size[0] < constants['J'])


def test_many_chunks_are_shared_out():
    """A program of a summary takes several chunks where there are more than keep a GPU busy."""
    _, launches = ss2d_plan(200, 334, channels=64, batch=8)
    summary = launches[0]
    assert 1 < summary.trips == summary.args['repeat'] <= launch.MAX_REPEAT
    assert summary.grid[0] * summary.trips >= summary.args['items']


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('size', [(7, 7), (20, 20)], ids=str)
@pytest.mark.parametrize('pattern', PATTERNS, ids=str)
def test_no_argument_is_missing(pattern, size, backward):
    _, launches = ss2d_plan(*size, pattern=pattern, backward=backward)
    assert_arguments(launches)


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('length', [9, 400])
@pytest.mark.parametrize(('B', 'C'), [('grouped', 'constant'), ('constant', 'constant')])
def test_no_argument_of_a_sequence_is_missing(B, C, length, backward):
    _, launches = sequence_plan(length, B=B, C=C, bias=False, D=False, backward=backward)
    assert_arguments(launches)


def assert_arguments(launches):
    assert launches
    for item in launches:
        params = {p.name: p.is_constexpr for p in item.kernel.params}
        assert {name for name, constant in params.items() if constant} == item.constants.keys()
        assert {name for name, constant in params.items() if not constant} == item.args.keys()


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('pattern', ['cross', (3, 0)], ids=str)
@pytest.mark.parametrize(
    'sizes',
    [
        [(14, 14), (7, 29), (12, 16)],
        [(56, 56), (28, 28), (25, 42), (200, 334), (16, 4000)],
    ],
    ids=str,
)
def test_a_new_size_compiles_nothing(sizes, pattern, backward):
    """Neither constants differ, nor what Triton derives from arguments."""
    first, *others = (
        [specialization(item) for item in ss2d_plan(*size, pattern=pattern, backward=backward)[1]]
        for size in sizes
    )
    for other in others:
        assert other == first


@pytest.mark.parametrize('backward', [False, True])
def test_a_new_length_compiles_nothing(backward):
    first, *others = (
        [specialization(item) for item in sequence_plan(length, backward=backward)[1]]
        for length in (300, 1024, 1025)
    )
    for other in others:
        assert other == first


def specialization(item):
    """Return what a compiled kernel depends on; integers must not be part of it."""
    for param in item.kernel.params:
        if isinstance(item.args.get(param.name), int):
            assert param.do_not_specialize, param.name
            assert item.args[param.name] < 2**31
    types = {n: v.dtype for n, v in item.args.items() if isinstance(v, torch.Tensor)}
    return item.kernel, item.constants, item.options, types


def test_matrix_products_have_the_digits_of_the_type():
    for dtype, want in ((torch.float32, 'tf32x3'), (torch.float16, 'ieee')):
        _, launches = ss2d_plan(7, 7, dtype=dtype)
        assert {item.constants['PRECISION'] for item in launches} == {want}
