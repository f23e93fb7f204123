"""Maps of SS2D and of attention against the outputs of their layers."""

import numpy as np
import pytest
import torch

from mmvmamba.analysis.activation_map import (
    AttentionMaps,
    ScanMaps,
    rollout,
)
from mmvmamba.analysis.recording import record
from mmvmamba.nn import SS2D, VMambaNet

SHAPE = (3, 5)


def recorded(module, x):
    """The maps of one SS2D, its core's results, and the result of its forward."""

    net = VMambaNet('tiny', dims=(8,), depths=(1,), out_indices=(0,)).double()
    net.layers[0].blocks[0].op = module
    cores = []
    original = module.core

    def core(*args, **kwargs):
        cores.append(original(*args, **kwargs))
        return cores[-1]

    module.core = core
    results = []
    (maps,) = record(net, 0, lambda: results.append(module(x)))
    return maps, cores, results[0]


def build(scan, d_state, init='mamba', **settings):
    torch.manual_seed(0)
    return SS2D(8, d_state=d_state, ssm_ratio=1.5, scan=scan, ssm_init=init, **settings).double()


def output(path, m, t):
    """y_t of sequence m, by the definition in the module."""
    v = path.dt[m] * path.x[m]
    return (path.weights(m, t) * v).sum(0) + path.D * path.x[m, t]


@pytest.mark.parametrize('init', ['mamba', 'random', 'zero'])
@pytest.mark.parametrize('d_state', [1, 2, 5])
@pytest.mark.parametrize('scan', ['cross', 'unidirectional', 'bidirectional', 'cascade', 'hilbert'])
def test_output_of_the_scan_is_the_map_applied_to_its_input(scan, d_state, init):
    module = build(scan, d_state, init)
    maps, cores, _ = recorded(module, torch.randn(1, *SHAPE, 8, dtype=torch.float64))
    assert maps.shape == SHAPE and len(maps.passes) == (2 if scan == 'cascade' else 1)
    for paths, out in zip(maps.passes, cores, strict=True):
        # A pass of a cascade has lines as samples, those of the second one columns.
        flat = out.reshape(-1, 12)
        if paths is not maps.passes[0]:
            flat = out.reshape(SHAPE[1], SHAPE[0], 12).transpose(0, 1).reshape(-1, 12)
        for query in range(flat.shape[0]):
            y = sum(output(path, *path.locate(query)) for path in paths)
            torch.testing.assert_close(y, flat[query], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('scan', ['cross', 'bidirectional', 'cascade', 'diagonal'])
@pytest.mark.parametrize('d_state', [1, 3])
def test_matrices_rows_and_pictures_agree(scan, d_state):
    maps, _, _ = recorded(build(scan, d_state), torch.randn(1, *SHAPE, 8, dtype=torch.float64))
    for form in maps.forms:
        whole = maps.matrix(form)
        for query in (0, 7, 14):
            row = whole[query].view(SHAPE)
            torch.testing.assert_close(maps.summed(query, form), row)
            if scan == 'cascade':
                continue
            single = [maps.in_image_order(path, query, form) for path in maps.paths]
            torch.testing.assert_close(sum(single), row)


def test_paper_formula():
    """(Q w)(K / w)^T over the lower triangle, where the path is short enough for it."""
    maps, _, _ = recorded(build('cross', 3), torch.randn(1, *SHAPE, 8, dtype=torch.float64))
    for path in maps.paths:
        w = (path.dt[0, :, :, None] * path.A).cumsum(0).exp()  # (L, C, S)
        q, k = path.C[0, :, None] * w, path.B[0, :, None] / w
        expected = torch.einsum('tcn,scn->ts', q, k).tril() / path.dt.shape[2]
        torch.testing.assert_close(path.matrices('decay')[0], expected)
        plain = torch.einsum('tn,sn->ts', path.C[0], path.B[0]).tril()
        torch.testing.assert_close(path.matrices('qk')[0], plain)


def test_paths_visit_the_map_in_their_order():
    """In path order, what lies after the query is dark; in image order, what is not reached."""
    maps, _, _ = recorded(build('cross', 1), torch.randn(1, *SHAPE, 8, dtype=torch.float64))
    query = 1 * SHAPE[1] + 2  # row 1, column 2
    place = np.arange(15).reshape(SHAPE)
    seen = [place <= query, place.T.ravel().argsort().reshape(SHAPE) <= 2 * 3 + 1]
    seen += [place >= query, place.T.ravel().argsort().reshape(SHAPE) >= 2 * 3 + 1]
    steps = [query, 2 * 3 + 1, 14 - query, 14 - (2 * 3 + 1)]
    shapes = [SHAPE, SHAPE[::-1]] * 2
    for path, reached, step, shape in zip(maps.paths, seen, steps, shapes, strict=True):
        for form in maps.forms:
            along = maps.in_path_order(path, query, form)
            assert along.shape == shape
            assert ((along.flatten() != 0).numpy() == (np.arange(15) <= step)).all()
            image = maps.in_image_order(path, query, form)
            assert ((image != 0).numpy() == reached).all()
            assert sorted(image.flatten().tolist()) == sorted(along.flatten().tolist())


def test_long_paths_and_fast_decay_stay_finite():
    """Where w of the paper's formula is 0 and 1 / w is infinite."""
    module = build('cross', 2)
    with torch.no_grad():
        module.A_logs.fill_(6.0)
        module.dt_projs_bias.fill_(5.0)
    maps, _, _ = recorded(module, torch.randn(1, 20, 20, 8, dtype=torch.float64))
    path = maps.paths[0]
    assert (path.dt * path.A[:, 0]).cumsum(1).exp().min() == 0
    for form in maps.forms:
        matrix = maps.matrix(form)
        assert matrix.isfinite().all()
        torch.testing.assert_close(matrix[210].view(20, 20), maps.summed(210, form))
    # All that is left is the position itself.
    own = sum(((p.B * p.C)[0, p.locate(210)[1]]).sum() for p in maps.paths)
    torch.testing.assert_close(maps.summed(210, 'decay')[10, 10], own)


def test_rollout_by_hand():
    """Two blocks of a map of 1 x 2 without a class token."""

    class Fixed(AttentionMaps):
        def matrix(self, form):
            return self.q

    first = Fixed((1, 2), torch.tensor([[3.0, -1.0], [0.0, 0.0]]), None)
    second = Fixed((1, 2), torch.tensor([[0.0, 2.0], [1.0, 1.0]]), None)
    # Half the identity, half [[3/4, 1/4], [0, 1]], whose empty row is the identity's.
    a = np.array([[7 / 8, 1 / 8], [0, 1]])
    b = np.array([[1 / 2, 1 / 2], [1 / 4, 3 / 4]])
    for query in (0, 1):
        found = rollout([first, second], query, 'qk')
        np.testing.assert_allclose(found.numpy(), [(b @ a)[query]], rtol=1e-6)


@pytest.mark.parametrize('scan', ['cross', 'cascade'])
def test_rollout_goes_block_by_block(scan):
    """Its rows sum to one, and the progress is that of the blocks."""
    maps, _, _ = recorded(build(scan, 2), torch.randn(1, *SHAPE, 8, dtype=torch.float64))
    seen = []
    found = rollout([maps, maps], 7, 'decay', lambda items: seen.extend(items) or items)
    assert seen == [maps, maps] and found.sum() == pytest.approx(1)


def test_no_passes_have_no_paths():
    assert ScanMaps((1, 1)).paths == []
