"""What an exported model needs beside the scan: pooling of any size, and half precision.

Needs onnxscript.
"""

from collections.abc import Callable

import torch
from onnxscript import ir
from onnxscript import opset18 as op
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

from mmvmamba.ops.onnx import translations as scan_translations


def translations() -> dict[Callable, Callable]:
    """The argument ``custom_translation_table`` of ``torch.onnx.export`` for whole models.

    Returns:
        dict: :func:`mmvmamba.ops.onnx.translations` and adaptive average pooling, which the
        exporter of torch 2.12 writes wrongly for maps of symbolic size.
    """
    pool = dict.fromkeys(
        (torch.ops.aten.adaptive_avg_pool2d.default, torch.ops.aten._adaptive_avg_pool2d.default),
        _adaptive_avg_pool2d,
    )
    return {**scan_translations(), **pool}


def _adaptive_avg_pool2d(x, output_size):
    """Averages over bins as two products with matrices, (N, C, H, W) -> (N, C, *output_size)."""
    if tuple(output_size) == (1, 1):
        return op.ReduceMean(x, op.Constant(value_ints=[2, 3]), keepdims=1)
    rows, columns = (_bins(x, axis, size) for axis, size in zip((2, 3), output_size, strict=True))
    return op.MatMul(op.MatMul(rows, x), op.Transpose(columns, perm=[1, 0]))


def _bins(x: ir.Value, axis: int, bins: int) -> ir.Value:
    """The weight of each position of an axis in each bin, (bins, positions).

    Bin i of n positions is from floor(i n / bins) up to ceil((i + 1) n / bins).
    """
    n = op.Shape(x, start=axis, end=axis + 1)
    edges = op.Mul(op.Constant(value_ints=list(range(bins + 1))), n)
    count = op.Constant(value_ints=[bins])
    low = op.Div(edges, count)
    high = op.Div(op.Add(edges, op.Constant(value_ints=[bins - 1])), count)
    first, last, along = (op.Constant(value_ints=[v]) for v in (0, bins, 1))
    begin = op.Unsqueeze(op.Slice(low, first, last, first), along)
    end = op.Unsqueeze(op.Slice(high, along, op.Constant(value_ints=[bins + 1]), first), along)
    scalar = [op.Constant(value_int=v) for v in (0, 1)]
    position = op.Range(scalar[0], op.Squeeze(n, first), scalar[1])
    inside = op.And(op.GreaterOrEqual(position, begin), op.Less(position, end))
    return op.Div(op.CastLike(inside, x), op.CastLike(op.Sub(end, begin), x))


def use_half_products(model: ir.Model) -> None:
    """Makes matrix products and convolutions of an exported model float16, in place.

    All else stays as it is, the scans with the projection of their time steps, norms, pooling and
    sums in float32, as in automatic mixed precision; inputs and outputs keep their dtype. The steps
    of a Scan have no products.

    Args:
        model (ir.Model): ``torch.onnx.export(...).model``, made with :func:`translations`.
    """
    graph, half = model.graph, {}
    # The exporter notes last in a node's namespace which op of PyTorch it was made from.
    translated = tuple(f': {target}' for target in translations())
    for node in list(graph):
        if node.op_type not in ('MatMul', 'Gemm', 'Conv'):
            continue
        if node.metadata_props.get('namespace', '').endswith(translated):
            continue
        if node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
            continue
        for i, value in enumerate(node.inputs):
            if value is not None:
                if value not in half:
                    half[value] = _as_half(graph, value, node)
                node.replace_input_with(i, half[value])
        out = node.outputs[0]
        cast = ir.node('Cast', [out], attributes={'to': ir.DataType.FLOAT})
        back = cast.outputs[0]
        # The name of an output of the model stays that of the result in float32.
        back.name, out.name = out.name, f'{out.name}_product'
        back.shape, back.dtype = out.shape, ir.DataType.FLOAT
        ir.convenience.replace_all_uses_with(out, back, replace_graph_outputs=True)
        cast.replace_input_with(0, out)
        out.dtype = ir.DataType.FLOAT16
        graph.insert_after(node, cast)
    RemoveUnusedNodesPass()(model)  # weights in float32


def _as_half(graph: ir.Graph, value: ir.Value, before: ir.Node) -> ir.Value:
    if value.const_value is not None and value.is_initializer():
        tensor = ir.tensor(value.const_value.numpy().astype('float16'), name=f'{value.name}_half')
        new = ir.Value(name=tensor.name, const_value=tensor)
        new.shape, new.dtype = tensor.shape, tensor.dtype
        graph.register_initializer(new)
        return new
    cast = ir.node('Cast', [value], attributes={'to': ir.DataType.FLOAT16})
    new = cast.outputs[0]
    new.name, new.shape, new.dtype = f'{value.name}_half', value.shape, ir.DataType.FLOAT16
    graph.insert_before(before, cast)
    return new
