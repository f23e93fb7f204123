"""INT8 programs and ONNX files of thin networks, compared with float32."""

import collections
import importlib.util

import numpy as np
import pytest
import torch

from mmvmamba.export import int8
from mmvmamba.nn import VMambaNet
from mmvmamba.ops import extension_error

from ..test_ops.onnx_graphs import NEEDS_EXPORTER

NEEDS_TORCHAO = [
    pytest.mark.skipif(importlib.util.find_spec('torchao') is None, reason='needs torchao'),
    pytest.mark.skipif(extension_error() is not None, reason='the op is not there'),
]
THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
QUANTIZE = 'quantized_decomposed.quantize_per_tensor.default'


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return VMambaNet(THIN, num_classes=5).eval()


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 64, 96, generator=generator) for _ in range(count)]


def relative_error(got, want):
    return float((got - want).norm() / want.norm())


@pytest.fixture(scope='module')
def program(net):
    return int8.quantize(net, batches())


class TestProgram:
    pytestmark = NEEDS_TORCHAO

    def test_linear_layers_are_quantized(self, program):
        """Four in each block and the head; products with the scan's parameters are not."""
        nodes = [node for node in program.graph.nodes if node.op == 'call_function']
        quantized = [node for node in nodes if str(node.target) == QUANTIZE]
        linear = [node for node in nodes if str(node.target) == 'aten.linear.default']
        assert len(quantized) == 4 * 4 + 1 and len(linear) == 4 * 5 + 1
        assert sum(str(node.target) == 'mmvmamba.ss2d_scan.default' for node in nodes) == 4
        weights = [value for value in program.state_dict.values() if value.dtype == torch.int8]
        assert sum(value.numel() for value in weights) > 1000

    @pytest.mark.parametrize('shape', [(1, 3, 64, 96), (3, 3, 75, 50)])
    def test_any_size_is_close_to_float32(self, net, program, shape):
        images = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            assert 0 < relative_error(program.module()(images), net(images)) < 0.1

    def test_fixed_size(self):
        """Of a model whose export fixes the batch size."""

        class Net(torch.nn.Sequential):
            def forward(self, images):
                return super().forward(images.movedim(1, 3)).view(int(len(images) / 2), -1)

        net, images = Net(torch.nn.Linear(3, 5)).eval(), batches(1)[0]
        with pytest.raises(torch._dynamo.exc.UserError, match='dynamic'):
            int8.quantize(net, [images])
        program = int8.quantize(net, [images], dynamic=False)
        with torch.no_grad():
            assert 0 < relative_error(program.module()(images), net(images)) < 0.1

    @pytest.mark.slow
    def test_compiled(self, net, program, tmp_path):
        torch.export.save(program, tmp_path / 'int8.pt2')
        run = int8.load(tmp_path / 'int8.pt2')
        images = batches(1)[0]
        got = run(images)
        assert not got.requires_grad
        with torch.no_grad():
            assert 0 < relative_error(got, net(images)) < 0.1

    def test_mistakes(self, net):
        with pytest.raises(ValueError, match='at least one batch'):
            int8.quantize(net, [])
        with pytest.raises(ValueError, match='must be in eval mode'):
            int8.quantize(VMambaNet(THIN).train(), batches())
        with pytest.raises(ValueError, match=r'36 pixels per side, but got .*\(1, 3, 64, 35\)'):
            int8.quantize(net, [torch.zeros(1, 3, 64, 35)])


@pytest.fixture(scope='module')
def files(net, tmp_path_factory):
    """A file in float32, with a shape that is wrong, and its INT8 form."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from mmvmamba.export.onnx import translations

    folder = tmp_path_factory.mktemp('int8')
    with torch.no_grad():
        torch.onnx.export(
            net,
            (torch.randn(2, 3, 64, 96),),
            dynamo=True,
            opset_version=20,
            input_names=['images'],
            dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'},),
            custom_translation_table=translations(),
            verbose=False,
        ).save(folder / 'float32.onnx')
    model = onnx.load(folder / 'float32.onnx')
    del model.graph.value_info[:]
    name = next(n.output[0] for n in model.graph.node if n.op_type == 'Conv')
    model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, (7, 7)))
    onnx.save(model, folder / 'float32.onnx')
    int8.quantize_onnx(folder / 'float32.onnx', folder / 'int8.onnx', batches())
    return folder


def producers_of(graph):
    """Map each value of a graph to the op that makes it."""
    return {name: node.op_type for node in graph.node for name in node.output}


def products(graph):
    """Count products and convolutions by op, and by whether they are quantized."""
    producers = producers_of(graph)
    return collections.Counter(
        (node.op_type, producers.get(node.input[0]) == 'DequantizeLinear')
        for node in graph.node
        if node.op_type in ('Conv', 'Gemm', 'MatMul')
    )


class TestOnnx:
    pytestmark = NEEDS_EXPORTER

    @pytest.mark.parametrize('shape', [(1, 3, 64, 96), (3, 3, 75, 50)])
    def test_any_size_is_close_to_float32(self, net, files, shape):
        import onnxruntime

        images = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
        session = onnxruntime.InferenceSession(
            files / 'int8.onnx', providers=['CPUExecutionProvider']
        )
        (got,) = session.run(None, {'images': images.numpy()})
        with torch.no_grad():
            want = net(images)
        assert got.dtype == np.float32
        assert 0 < relative_error(torch.from_numpy(got), want) < 0.15

    def test_layers_are_quantized(self, files):
        """Five convolutions around the blocks, one in each; four products in each, and the head.

        Those with a bias are Gemm.
        """
        import onnx

        graph = onnx.load(files / 'int8.onnx').graph
        producers = producers_of(graph)
        for node in graph.node:
            if node.op_type in ('LayerNormalization', 'Scan', 'Gelu', 'Exp', 'Log'):
                assert all(producers.get(name) != 'QuantizeLinear' for name in node.input)
        # In float32: the projection of the scan's parameters, and four directions' time steps.
        assert products(graph) == {
            ('Conv', True): 5 + 4,
            ('MatMul', True): 4 * 2,
            ('MatMul', False): 4 * 5,
            ('Gemm', True): 4 * 2 + 1,
        }

    @pytest.mark.parametrize(
        ('shape', 'weight', 'bias', 'first', 'joined'),
        [
            ((7, 4), (4, 5), (5,), False, True),
            ((2, 3, 4), (4, 5), (5,), False, True),
            ((2, 3, 4), (4, 5), (5,), True, True),
            ((2, 3, 4), (4, 1), (1,), False, True),
            ((2, 3, 4), (4, 1), (5,), False, False),
            ((2, 3, 4), (4, 5), (3, 1), False, False),
        ],
    )
    def test_a_product_with_a_bias_is_one_gemm(self, tmp_path, shape, weight, bias, first, joined):
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        from mmvmamba.export.onnxruntime import open_session

        draw = np.random.default_rng(0).standard_normal
        values = {
            name: draw(size).astype(np.float32) for name, size in dict(w=weight, b=bias).items()
        }
        x, want = draw(shape).astype(np.float32), None
        want = x @ values['w'] + values['b']
        nodes = [
            helper.make_node('MatMul', ['x', 'w'], ['product'], 'product'),
            helper.make_node('Add', ['b', 'product'] if first else ['product', 'b'], ['y'], 'sum'),
        ]
        graph = helper.make_graph(
            nodes,
            'graph',
            [helper.make_tensor_value_info('x', TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info('y', TensorProto.FLOAT, want.shape)],
            [numpy_helper.from_array(value, name) for name, value in values.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
        onnx.save(model, tmp_path / 'source')
        int8.quantize_onnx(tmp_path / 'source', tmp_path / 'out', [torch.from_numpy(x)])
        types = [node.op_type for node in onnx.load(tmp_path / 'out').graph.node]
        assert [types.count(name) for name in ('Gemm', 'MatMul', 'Add')] == (
            [1, 0, 0] if joined else [0, 1, 1]
        )
        (got,) = open_session(tmp_path / 'out').run(None, {'x': x})
        assert np.abs(got - want).max() < 0.03 * np.abs(want).max()

    def test_custom_op(self, net, files, tmp_path):
        """The scans stay single nodes, and the rest of the file is quantized as without them."""
        import onnx

        from mmvmamba.export.onnx import export_file
        from mmvmamba.export.onnxruntime import open_session

        images = torch.randn(3, 3, 75, 50, generator=torch.Generator().manual_seed(5))
        source, out = tmp_path / 'source', tmp_path / 'out'
        export_file(net, images, source, dynamic=True, custom_op=True)
        int8.quantize_onnx(source, out, batches())
        graph = onnx.load(out).graph
        types = [node.op_type for node in graph.node]
        assert types.count('SS2DScan') == 4 and 'Scan' not in types
        # In float32: the projection of the scan's parameters.
        assert products(graph) == {
            ('Conv', True): 5 + 4,
            ('MatMul', True): 4 * 2,
            ('MatMul', False): 4,
            ('Gemm', True): 4 * 2 + 1,
        }
        (got,) = open_session(out, custom_op=True).run(None, {'images': images.numpy()})
        (want,) = open_session(files / 'int8.onnx').run(None, {'images': images.numpy()})
        assert relative_error(torch.from_numpy(got), torch.from_numpy(want)) < 0.05

    def test_no_batch(self, files, tmp_path):
        with pytest.raises(ValueError, match='No data is collected'):
            int8.quantize_onnx(files / 'float32.onnx', tmp_path / 'out.onnx', [])
