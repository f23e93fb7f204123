"""torch.export and AOTInductor: the op in the program, any size, saved and loaded."""

import io
import subprocess
import sys

import pytest
import torch

from mmvmamba.nn import VMambaNet
from mmvmamba.ops import decompositions, extension_error

pytestmark = pytest.mark.skipif(extension_error() is not None, reason='the op is not there')
SCAN = 'mmvmamba.ss2d_scan.default'
THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
# The last stage of an image of 32 pixels (35 with a stem of patches) is one position, which is
# another program.
SIZES = ((1, 3, 64, 96), (3, 3, 50, 75), (2, 3, 33, 160), (1, 3, 96, 34))
PATCH_SIZES = ((1, 3, 64, 96), (3, 3, 50, 75), (2, 3, 36, 160), (1, 3, 96, 37))


def build(out_indices, arch='tiny', **settings):
    torch.manual_seed(0)
    settings = {**THIN, **settings}
    return VMambaNet(arch, out_indices=out_indices, num_classes=5, **settings).eval()


@torch.no_grad()
def export(model, dynamic=True, least=33):
    batch = torch.export.Dim('batch')
    height, width = (torch.export.Dim(name, min=least) for name in ('height', 'width'))
    shapes = ({0: batch, 2: height, 3: width},) if dynamic else None
    return torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=shapes)


def reloaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def targets(program):
    return [str(node.target) for node in program.graph.nodes if node.op == 'call_function']


@torch.no_grad()
def check(run, model, sizes, limit):
    for size in sizes:
        images = torch.randn(*size, generator=torch.Generator().manual_seed(1))
        got, want = run(images), model(images)
        if isinstance(want, torch.Tensor):
            got, want = [got], [want]
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=limit, atol=limit)


@pytest.mark.parametrize('out_indices', [None, pytest.param((0, 2, 3), marks=pytest.mark.slow)])
def test_any_batch_and_size(out_indices):
    model = build(out_indices)
    program = export(model)
    assert targets(program).count(SCAN) == 4
    check(reloaded(program).module(), model, SIZES, limit=1e-6)


@pytest.mark.parametrize('out_indices', [None, pytest.param((0, 2, 3), marks=pytest.mark.slow)])
def test_any_size_of_the_vanilla_architectures(out_indices):
    model = build(out_indices, 'vanilla_tiny')
    program = reloaded(export(model, least=36))
    check(program.module(), model, PATCH_SIZES, limit=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'settings',
    [dict(scan='cascade'), dict(scan='bidirectional'), dict(pos_embed_size=64), dict(norm='bn')],
    ids=str,
)
def test_any_size_of_other_settings(settings):
    model = build(None, **settings)
    check(reloaded(export(model)).module(), model, SIZES, limit=1e-5)


def test_openmmlab_backbone():
    models = pytest.importorskip('mmvmamba.models')
    model = models.VMamba(THIN, out_indices=(1, 3)).eval()
    check(reloaded(export(model)).module(), model, SIZES, limit=1e-5)


def test_a_size_out_of_range_is_refused():
    run = export(build((0,))).module()
    with pytest.raises((AssertionError, RuntimeError)):
        run(torch.randn(1, 3, 20, 20))


def test_standard_ops(tmp_path):
    """Decomposed, a program of a fixed size runs where mmvmamba is never imported."""
    model = build(None, dims=(8, 16), depths=(1, 1), d_state=2)
    program = export(model, dynamic=False).run_decompositions(decompositions())
    assert not any('mmvmamba' in target for target in targets(program))
    images = torch.randn(2, 3, 64, 96)
    torch.export.save(program, tmp_path / 'program.pt2')
    torch.save(images, tmp_path / 'images.pt')
    script = """if True:
        import sys, torch
        images = torch.load(sys.argv[1] + '/images.pt')
        with torch.no_grad():
            out = torch.export.load(sys.argv[1] + '/program.pt2').module()(images)
        assert 'mmvmamba' not in sys.modules
        torch.save(out, sys.argv[1] + '/out.pt')
    """
    command = [sys.executable, '-c', script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / 'out.pt'), model(images))


@pytest.mark.slow
def test_aot_inductor(tmp_path):
    """A compiled package, run from Python, for any size."""
    model = build((0, 1), dims=(8, 16), depths=(1, 1))
    path = torch._inductor.aoti_compile_and_package(
        export(model), package_path=str(tmp_path / 'model.pt2')
    )
    check(torch._inductor.aoti_load_package(path), model, SIZES, limit=1e-5)
