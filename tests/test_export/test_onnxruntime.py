"""The custom op of ONNX Runtime, compared with the specification and with PyTorch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvmamba.export.onnxruntime import register_custom_ops
from mmvmamba.nn import VMambaNet
from mmvmamba.ops import extension_error

from ..test_ops.onnx_graphs import NEEDS_EXPORTER, op_types
from .test_onnx import Core

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
ROOT = Path(__file__).parents[2]
NEEDS_EXTENSION = pytest.mark.skipif(
    extension_error() is not None, reason=f'needs the native extension: {extension_error()}'
)
NAMES = ('x', 'proj', 'dt_weight', 'dt_bias', 'A', 'D')


def scan_model(orders):
    """Return a file's content: one node of free sizes."""
    value = onnx.helper.make_tensor_value_info
    ranks = (4, 5, 3, 2, 3, 2)
    node = onnx.helper.make_node('SS2DScan', NAMES, ['y'], domain='mmvmamba', orders=orders)
    graph = onnx.helper.make_graph(
        [node],
        'scan',
        [value(name, 1, [None] * rank) for name, rank in zip(NAMES, ranks, strict=True)],
        [value('y', 1, [None] * 4)],
    )
    opsets = [onnx.helper.make_opsetid('', 20), onnx.helper.make_opsetid('mmvmamba', 1)]
    # Version 10: onnx writes a newer one than an older ONNX Runtime reads.
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session_of(model, threads=1):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised as well
    register_custom_ops(options)
    return ort.InferenceSession(model, options, providers=['CPUExecutionProvider'])


def feeds(core, *shape):
    parameters = (core.weight, core.bias, -core.A_log.exp(), core.D)
    values = (*core.inputs(*shape), *(p.detach() for p in parameters))
    return {name: value.numpy() for name, value in zip(NAMES, values, strict=True)}


@NEEDS_EXTENSION
class TestOp:
    @pytest.mark.parametrize('threads', [1, 2])
    @pytest.mark.parametrize(('orders', 'states'), [((0, 1, 2, 3), 1), ((3, 0, 0, 1), 3)])
    def test_equals_the_specification(self, orders, states, threads):
        core = Core(37, 2, states, orders)
        session = session_of(scan_model(orders), threads)
        for shape in ((2, 4, 6), (1, 1, 1), (3, 1, 9), (1, 20, 31)):
            (got,) = session.run(None, feeds(core, *shape))
            expected = core.expected(*core.inputs(*shape))
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)

    def test_no_image(self):
        core = Core(5, 2, 1, 'cross')
        assert session_of(scan_model((0, 1, 2, 3))).run(None, feeds(core, 0, 4, 6))[0].size == 0

    def test_several_sessions(self):
        for _ in range(3):
            session_of(scan_model((0, 1, 2, 3)))

    @pytest.mark.parametrize('orders', [(), (0, 4), (-1,)])
    def test_wrong_orders(self, orders):
        with pytest.raises(Exception, match='orders'):
            session_of(scan_model(orders))

    @pytest.mark.parametrize('name', NAMES[1:])
    def test_wrong_shape(self, name):
        """Check that a malformed file reads no memory outside its inputs."""
        core = Core(5, 2, 1, 'cross')
        inputs = feeds(core, 1, 4, 6)
        inputs[name] = inputs[name][:0]
        with pytest.raises(Exception, match='must have shape'):
            session_of(scan_model((0, 1, 2, 3))).run(None, inputs)

    @pytest.mark.parametrize(('rank', 'states'), [(0, 1), (1, 0)])
    def test_nothing_to_scan_with(self, rank, states):
        core = Core(5, rank, states, 'cross')
        with pytest.raises(Exception, match='at least 1'):
            session_of(scan_model((0, 1, 2, 3))).run(None, feeds(core, 1, 4, 6))


class TestExport:
    pytestmark = NEEDS_EXPORTER

    def export(self, model, path, custom_op=True):
        pytest.importorskip('onnxscript')
        from mmvmamba.export.onnx import translations

        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            program = torch.onnx.export(
                model.eval(),
                (torch.randn(2, 3, 64, 96, dtype=dtype),),
                dynamo=True,
                opset_version=20,
                input_names=['images'],
                dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'},),
                custom_translation_table=translations(custom_op),
                verbose=False,
            )
        program.save(path)
        onnx.checker.check_model(path, full_check=True)
        return set(op_types(onnx.load(path).graph))

    def test_one_node_for_a_scan(self, tmp_path):
        torch.manual_seed(0)
        model = VMambaNet(dict(dims=(8, 16), depths=(1, 1)), num_classes=5)
        ops = self.export(model, tmp_path / 'model.onnx')
        assert ('mmvmamba', 'SS2DScan') in ops
        assert not {('', 'Scan'), ('', 'Cast'), ('', 'CastLike')} & ops
        with pytest.raises(Exception, match='SS2DScan'):
            ort.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
        session = session_of(tmp_path / 'model.onnx')
        for shape in ((1, 3, 75, 50), (2, 3, 64, 96)):
            images = torch.randn(*shape)
            (got,) = session.run(None, {'images': images.numpy()})
            with torch.no_grad():
                torch.testing.assert_close(
                    torch.from_numpy(got), model(images), rtol=1e-4, atol=1e-5
                )

    def test_float64_in_standard_ops(self, tmp_path):
        model = VMambaNet(dict(dims=(8,), depths=(1,)), num_classes=5).double()
        assert {domain for domain, _ in self.export(model, tmp_path / 'model.onnx')} == {''}


def test_without_the_extension(monkeypatch):
    from mmvmamba.export import onnxruntime

    monkeypatch.setattr(onnxruntime, 'extension_error', lambda: 'it was not built')
    with pytest.raises(RuntimeError, match='native extension: it was not built'):
        onnxruntime.register_custom_ops(ort.SessionOptions())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('c++') is None, reason='there is no C++ compiler')
def test_a_library_without_torch(tmp_path):
    """The command of docs/deployment.md; the library then runs where torch is not imported."""
    text = (ROOT / 'docs' / 'deployment.md').read_text()
    command = next(line for line in text.splitlines() if line.startswith('c++ '))
    library = tmp_path / 'libmmvmamba_onnxruntime.so'
    subprocess.run(command.replace(library.name, str(library)), shell=True, check=True, cwd=ROOT)
    core, orders = Core(37, 2, 1, 'cross'), (0, 1, 2, 3)
    (tmp_path / 'scan.onnx').write_bytes(scan_model(orders))
    np.savez(tmp_path / 'inputs.npz', **feeds(core, 1, 6, 9))
    program = f"""
import numpy, onnxruntime, sys
options = onnxruntime.SessionOptions()
options.register_custom_ops_library({str(library)!r})
session = onnxruntime.InferenceSession('scan.onnx', options, providers=['CPUExecutionProvider'])
numpy.save('y.npy', session.run(None, dict(numpy.load('inputs.npz')))[0])
assert 'torch' not in sys.modules
"""
    environment = {**os.environ, 'PYTHONPATH': ''}
    subprocess.run([sys.executable, '-c', program], check=True, cwd=tmp_path, env=environment)
    expected = core.expected(*core.inputs(1, 6, 9))
    np.testing.assert_allclose(np.load(tmp_path / 'y.npy'), expected, rtol=1e-4, atol=1e-4)
