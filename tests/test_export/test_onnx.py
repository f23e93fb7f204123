"""The scan in ONNX's standard ops, run by ONNX Runtime and compared with the specification."""

import os

import numpy as np
import pytest
import torch
from torch import nn

from mmvmamba.nn import VMambaNet
from mmvmamba.ops import ss2d_scan, ss2d_scan_reference

from ..test_ops.onnx_graphs import NEEDS_EXPORTER, op_types

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytestmark = NEEDS_EXPORTER


class Core(nn.Module):
    """``ss2d_scan`` with parameters; A = -exp(A_log), as in the network."""

    def __init__(self, channels, rank, states, pattern, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype))

        self.weight, self.bias = random(4, channels, rank), random(4, channels)
        self.A_log, self.D = random(4, channels, states), random(4, channels)
        self.pattern = pattern
        self.inner = rank + 2 * states
        self.channels = channels

    def forward(self, x, proj):
        out_dtype = torch.float32 if x.dtype == torch.float16 else None
        parameters = (self.weight, self.bias, -self.A_log.exp(), self.D)
        return ss2d_scan(x, proj, *parameters, self.pattern, out_dtype)

    def inputs(self, N, H, W, dtype=torch.float32, seed=1):
        generator = torch.Generator().manual_seed(seed)
        shapes = (N, H, W, self.channels), (N, H, W, 4, self.inner)
        return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]

    @torch.no_grad()
    def expected(self, x, proj):
        """The specification in float64."""
        parameters = (self.weight, self.bias, -self.A_log.exp(), self.D)
        values = (v.double() for v in (x, proj, *parameters))
        return ss2d_scan_reference(*values, self.pattern).numpy()


def export(core, path, inputs, dynamic=True):
    from mmvmamba.export.onnx import translations

    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 1: auto, 2: auto},) * 2 if dynamic else None
    with torch.no_grad():
        program = torch.onnx.export(
            core.eval(),
            tuple(inputs),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=shapes,
            custom_translation_table=translations(),
            verbose=False,
        )
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [value.name for value in session.get_inputs()]

    def run(*tensors):
        values = (tensor.numpy() for tensor in tensors)
        return session.run(None, dict(zip(names, values, strict=True)))[0]

    return run


@pytest.mark.parametrize(('pattern', 'states'), [('cross', 1), ((3, 0, 0, 1), 3)])
def test_any_size_from_one_export(tmp_path, pattern, states):
    """Maps of one row, one column and one position too."""
    core = Core(5, 2, states, pattern)
    run = export(core, tmp_path / 'core.onnx', core.inputs(2, 4, 6))
    for N, H, W in ((2, 4, 6), (1, 7, 3), (3, 1, 9), (1, 9, 1), (1, 1, 1), (1, 20, 31)):
        inputs = core.inputs(N, H, W)
        np.testing.assert_allclose(run(*inputs), core.expected(*inputs), rtol=1e-4, atol=1e-4)


def test_registered_orders_for_a_fixed_size(tmp_path):
    core = Core(5, 2, 1, ('hilbert', 1, 'snake_transposed', 'hilbert_reversed'))
    run = export(core, tmp_path / 'core.onnx', inputs := core.inputs(2, 4, 6), dynamic=False)
    np.testing.assert_allclose(run(*inputs), core.expected(*inputs), rtol=1e-4, atol=1e-4)
    assert {domain for domain, _ in op_types(onnx.load(tmp_path / 'core.onnx').graph)} == {''}


def test_registered_orders_for_any_size_are_refused(tmp_path):
    from mmvmamba.export.onnx import export_file

    net = VMambaNet('tiny', dims=(8, 16), depths=(1, 1), scan=('row', 'snake')).eval()
    with pytest.raises(ValueError, match="^scan order 'snake' can only be exported"):
        export_file(net, torch.randn(1, 3, 32, 32), tmp_path / 'net.onnx', dynamic=True)


def test_standard_ops_alone(tmp_path):
    core = Core(4, 1, 1, 'cross')
    export(core, tmp_path / 'core.onnx', core.inputs(1, 3, 5))
    model = onnx.load(tmp_path / 'core.onnx')
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [('', 20)]
    assert not model.functions
    found = set(op_types(model.graph))
    assert {domain for domain, _ in found} == {''}
    assert ('', 'Scan') in found


def test_the_graph_does_not_grow_with_the_map(tmp_path):
    sizes = []
    for side in (6, 24):
        core = Core(4, 1, 1, 'cross')
        path = tmp_path / f'{side}.onnx'
        run = export(core, path, inputs := core.inputs(1, side, side + 1), dynamic=False)
        np.testing.assert_allclose(run(*inputs), core.expected(*inputs), rtol=1e-4, atol=1e-4)
        sizes.append(len(list(op_types(onnx.load(path).graph))))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_other_precisions(tmp_path, dtype):
    """float16 is scanned in float32, and exported where no CPU kernel takes it."""
    core = Core(4, 2, 1, 'cross', torch.float64 if dtype == torch.float64 else torch.float32)
    run = export(core, tmp_path / 'core.onnx', core.inputs(1, 3, 5, dtype))
    inputs = core.inputs(1, 6, 4, dtype)
    out = run(*inputs)
    assert out.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    limit = 1e-12 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(out, core.expected(*inputs), rtol=limit, atol=limit)


def test_long_and_extreme_sequences_are_finite(tmp_path):
    """Decays that underflow, time steps that are huge or vanish, states that hardly decay."""
    core = Core(3, 1, 1, 'cross')
    with torch.no_grad():
        core.A_log.copy_(torch.tensor([-12.0, 0.0, 12.0])[None, :, None].expand(4, 3, 1))
    run = export(core, tmp_path / 'core.onnx', core.inputs(1, 4, 6))
    x, proj = core.inputs(1, 160, 250)
    proj[..., 0] *= 50
    out, expected = run(x, proj), core.expected(x, proj)
    assert np.isfinite(out).all()
    for channel in range(3):
        error = np.abs(out - expected)[..., channel].max()
        assert error < 1e-4 * np.abs(expected)[..., channel].max(), channel


# It loads its libraries with RTLD_DEEPBIND, at which AddressSanitizer ends the process.
@pytest.mark.skipif(
    os.environ.get('MMVMAMBA_SANITIZE') == '1', reason='OpenVINO does not run under a sanitizer'
)
@pytest.mark.parametrize(('pattern', 'states'), [('cross', 1), ((3, 0, 0, 1), 3)])
def test_openvino_runs_it(tmp_path, pattern, states):
    openvino = pytest.importorskip('openvino')
    core, path = Core(5, 2, states, pattern), tmp_path / 'core.onnx'
    export(core, path, core.inputs(2, 4, 6))
    compiled = openvino.compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    for N, H, W in ((2, 4, 6), (1, 7, 3), (3, 1, 9), (1, 20, 31)):
        inputs = core.inputs(N, H, W)
        out = compiled([value.numpy() for value in inputs])[0]
        np.testing.assert_allclose(out, core.expected(*inputs), rtol=1e-4, atol=1e-4)


def test_without_the_extension(monkeypatch):
    from mmvmamba.export import onnx as export

    monkeypatch.setattr(export, 'extension_error', lambda: 'it was not built')
    with pytest.raises(RuntimeError, match='it was not built'):
        export.translations()


class Projected(nn.Module):
    """A scan between two linear layers, whose weights a quantizer replaces."""

    def __init__(self):
        super().__init__()
        self.core = Core(8, 2, 1, 'cross')
        self.project, self.head = nn.Linear(8, 4 * self.core.inner), nn.Linear(8, 5)

    def forward(self, x):
        proj = self.project(x).unflatten(-1, (4, self.core.inner))
        return self.head(self.core(x, proj).mean((1, 2)))


@pytest.fixture(scope='module')
def projected(tmp_path_factory):
    from mmvmamba.export.onnx import save, translations

    torch.manual_seed(0)
    with torch.no_grad():
        program = torch.onnx.export(
            Projected().eval(),
            (torch.randn(1, 6, 9, 8),),
            dynamo=True,
            opset_version=20,
            input_names=['x'],
            custom_translation_table=translations(),
            verbose=False,
        )
    path = tmp_path_factory.mktemp('projected') / 'model.onnx'
    save(program, path)
    return path


def test_no_types_beside_the_weights(projected):
    graph = onnx.load(projected).graph
    produced = {name for node in graph.node for name in node.output}
    assert {value.name for value in graph.value_info} <= produced


class TestQuantization:
    """By ONNX Runtime's own tools."""

    X = np.random.default_rng(0).standard_normal((1, 6, 9, 8), dtype=np.float32)

    def error(self, path, quantized):
        sessions = (
            ort.InferenceSession(p, providers=['CPUExecutionProvider']) for p in (path, quantized)
        )
        want, got = (session.run(None, {'x': self.X})[0] for session in sessions)
        return np.abs(got - want).max() / want.std()

    def test_dynamic(self, projected, tmp_path):
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(projected, tmp_path / 'quantized.onnx')
        assert self.error(projected, tmp_path / 'quantized.onnx') < 0.1

    def test_static(self, projected, tmp_path):
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            batches = iter([{'x': TestQuantization.X}])

            def get_next(self):
                return next(self.batches, None)

        quant_pre_process(projected, tmp_path / 'ready.onnx')
        quantize_static(
            tmp_path / 'ready.onnx',
            tmp_path / 'quantized.onnx',
            Reader(),
            op_types_to_quantize=['MatMul', 'Gemm'],
        )
        assert self.error(projected, tmp_path / 'quantized.onnx') < 0.1
