"""Export to ONNX's standard ops with ``torch.onnx.export``. Needs onnxscript.

- The scan of a map. A sequence of L = H W positions is cut into H chunks of W positions, in every
  order. All chunks advance together from a zero state, the states at their ends are carried over,
  and all chunks advance again from the carried states: 2 W + H steps of ONNX's ``Scan``, each over
  all directions, chunks and channels. H and W may be symbolic. Only products of decays of at most 1
  are formed, so no length overflows.
- Adaptive average pooling, which torch 2.12 exports incorrectly for maps of symbolic size.
- Half precision for products and convolutions.
"""

# Annotations must stay objects here: onnxscript reads those of the functions that it compiles.
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from onnx.checker import check_model
from onnx.defs import OpSchema
from onnxscript import DOUBLE, FLOAT, graph, ir, script
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.registration import torch_op
from onnxscript.ir.passes.common import RemoveUnusedNodesPass
from onnxscript.values import Op, Opset
from torch import Tensor, nn

from mmvmamba.nn import SS2D
from mmvmamba.ops.extension import extension_error
from mmvmamba.ops.scan_orders import (
    CASCADE,
    COLUMN,
    COLUMN_REVERSED,
    ROW_REVERSED,
    resolve_pattern,
)

_SCAN_INPUTS = ('x', 'proj', 'dt_weight', 'dt_bias', 'A', 'D')
_BEFORE = -(2**62)  # the end of a slice that runs backwards


def translations(custom_op: bool = False) -> dict[Callable, Callable]:
    """Return the argument ``custom_translation_table`` of ``torch.onnx.export``.

    With this argument, ``dynamo=True`` and ``opset_version=20``, the exported graph has only
    standard ops.

    Args:
        custom_op (bool): Write each float32 scan as one node ``mmvmamba::SS2DScan``, which ONNX
            Runtime runs after :func:`mmvmamba.export.onnxruntime.register_custom_ops`.
            Defaults to False.

    Raises:
        RuntimeError: If the native extension, which defines the scan's op, is not loaded.
    """
    _check_extension()
    return {
        torch.ops.mmvmamba.ss2d_scan.default: _ss2d_scan_node if custom_op else _ss2d_scan,
        torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
        torch.ops.aten._adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    }


def _check_extension() -> None:
    reason = extension_error()
    if reason is not None:
        raise RuntimeError(f'ONNX export needs the native extension: {reason}')


@functools.cache
def register() -> None:
    """Make every ``torch.onnx.export(..., dynamo=True)`` in this process translate the scan.

    Use this for calls in other packages, such as ``timm.utils.onnx.onnx_export``. It has the effect
    of ``custom_translation_table=translations()``, except for the average pooling of maps of
    symbolic size.

    Raises:
        RuntimeError: If the native extension, which defines the scan's op, is not loaded.
    """
    _check_extension()
    # The registry of the translations that the exporter always uses.
    torch_op('mmvmamba::ss2d_scan', trace_only=True)(_ss2d_scan)


@functools.cache
def _recurrences(dtype: type) -> SimpleNamespace:
    """Return the forms of h' = h a + b over one axis, for FLOAT or DOUBLE.

    Bodies of Scan declare their types and name the state as the first factor: OpenVINO 2026.4
    refuses bodies without types, and writes the products into the memory of the other factor.
    """
    tensor = dtype[...]

    @script(default_opset=op)
    def last_state(initial: tensor, decay: tensor, drive: tensor) -> tensor:
        """The state after the last step over axis 0."""

        @graph()
        def step(h: tensor, a: tensor, b: tensor):
            h_next = h * a + b
            return h_next

        last = op.Scan(initial, decay, drive, body=step, num_scan_inputs=2)
        return last

    @script(default_opset=op)
    def states_before(initial: tensor, decay: tensor, drive: tensor) -> tensor:
        """The state before each step over axis 2."""

        @graph()
        def step(h: tensor, a: tensor, b: tensor):
            before = op.Identity(h)
            h_next = h * a + b
            return h_next, before

        _, states = op.Scan(
            initial,
            decay,
            drive,
            body=step,
            num_scan_inputs=2,
            scan_input_axes=[2, 2],
            scan_output_axes=[2],
        )
        return states

    @script(default_opset=op)
    def weighted_states(initial: tensor, decay: tensor, drive: tensor, weight: tensor) -> tensor:
        """The weighted state after each step over axis 0."""

        @graph()
        def step(h: tensor, a: tensor, b: tensor, c: tensor):
            h_next = h * a + b
            y = h_next * c
            return h_next, y

        _, ys = op.Scan(initial, decay, drive, weight, body=step, num_scan_inputs=3)
        return ys

    return SimpleNamespace(
        last_state=last_state, states_before=states_before, weighted_states=weighted_states
    )


def _rest() -> ir.Value:
    """Return the size of Reshape that the others leave."""
    return op.Constant(value_ints=[-1])


def _part(x: ir.Value, start: int, end: int, axis: int) -> ir.Value:
    return op.Slice(x, [start], [end], [axis])


def _softplus(x: ir.Value) -> ir.Value:
    """Return log(1 + exp(x)) by ops that runtimes vectorize; their Softplus is often scalar.

    Softplus also loses the digits of a small time step in 1 + exp(x), an error that a long memory
    adds up. The rounding error of the sum is added to its logarithm, whose slope there is 1.
    """
    one = op.CastLike(op.Constant(value_float=1.0), x)
    e = op.Exp(op.Neg(op.Abs(x)))
    total = op.Add(e, one)
    lost = op.Sub(e, op.Sub(total, one))
    return op.Add(op.Relu(x), op.Add(op.Log(total), lost))


class _MapChunks:
    """Maps (N, H, W, c) as sequences in chunks, (W, N, H, c), and back."""

    def __init__(self, x: ir.Value) -> None:
        shape = op.Shape(x)
        self.N, self.H, self.W = (_part(shape, i, i + 1, 0) for i in range(3))

    def cut(self, x: ir.Value, order: int) -> ir.Value:
        """(N, H, W, c) -> (W, N, H, c) in one order."""
        if order in (COLUMN, COLUMN_REVERSED):
            x = op.Transpose(x, perm=[0, 2, 1, 3])
            x = op.Reshape(x, op.Concat(self.N, self.H, self.W, _rest(), axis=0))
        return self._reverse(op.Transpose(x, perm=[2, 0, 1, 3]), order)

    def join(self, ys: Sequence[ir.Value], orders: Sequence[int]) -> list[ir.Value]:
        """(W, N, H, c) for each order -> the maps of the rows and of the columns."""
        maps = []
        for column, axes in ((False, (self.H, self.W)), (True, (self.W, self.H))):
            both = [
                self._reverse(y, order)
                for y, order in zip(ys, orders, strict=True)
                if (order in (COLUMN, COLUMN_REVERSED)) == column
            ]
            if not both:
                continue
            y = op.Transpose(functools.reduce(op.Add, both), perm=[1, 2, 0, 3])
            y = op.Reshape(y, op.Concat(self.N, *axes, _rest(), axis=0))
            maps.append(op.Transpose(y, perm=[0, 2, 1, 3]) if column else y)
        return maps

    @staticmethod
    def _reverse(x: ir.Value, order: int) -> ir.Value:
        """(W, N, H, c) with chunks and positions in reverse, if the order is a reversal."""
        if order not in (ROW_REVERSED, COLUMN_REVERSED):
            return x
        return op.Slice(x, [-1, -1], [_BEFORE, _BEFORE], [0, 2], [-1, -1])


def _scan_chunks(
    u: ir.Value,
    dt: ir.Value,
    A: ir.Value,
    B: ir.Value,
    C: ir.Value,
    d_state: int,
    scans: SimpleNamespace,
) -> ir.Value:
    """Selective scan of sequences in chunks.

    Shapes: u, dt and the output (W, K, N, H, 1, C), A (K, 1, 1, S, C), B and C (W, K, N, H, S, 1).
    """
    decay = op.Exp(op.Mul(dt, A))
    drive = op.Mul(op.Mul(dt, u), B)
    shape = op.Shape(drive)  # W, K, N, H, S, C
    zeros = op.CastLike(op.ConstantOfShape(_part(shape, 1, 6, 0)), drive)
    ends = scans.last_state(zeros, decay, drive)  # (K, N, H, S, C)
    decays = op.Exp(op.Mul(op.ReduceSum(dt, [0], keepdims=0), A))
    zero = op.ConstantOfShape(op.Concat(_part(shape, 1, 3, 0), _part(shape, 4, 6, 0), axis=0))
    carried = scans.states_before(op.CastLike(zero, drive), decays, ends)
    ys = scans.weighted_states(carried, decay, drive, C)  # (W, K, N, H, S, C)
    return ys if d_state == 1 else op.ReduceSum(ys, [-2], keepdims=1)


def _ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders, out_dtype, save_states):
    """Translate ``mmvmamba::ss2d_scan``; nothing reads its second output."""
    x, proj = op.CastLike(x, A), op.CastLike(proj, A)  # A has the dtype of the sums
    rank, d_state = dt_weight.shape[2], A.shape[2]
    chunks = _MapChunks(x)
    us, steps, Bs, Cs = [], [], [], []
    for k, order in enumerate(orders):
        values = chunks.cut(op.Squeeze(_part(proj, k, k + 1, 3), [3]), order)
        weight = op.Transpose(op.Squeeze(_part(dt_weight, k, k + 1, 0), [0]), perm=[1, 0])
        bias = op.Squeeze(_part(dt_bias, k, k + 1, 0), [0])
        us.append(chunks.cut(x, order))
        # Runtimes fuse a product with a matrix and the addition of a vector into one GEMM.
        steps.append(op.Add(op.MatMul(_part(values, 0, rank, 3), weight), bias))
        Bs.append(_part(values, rank, rank + d_state, 3))
        Cs.append(_part(values, rank + d_state, rank + 2 * d_state, 3))

    def directions(values: Sequence[ir.Value], axis: int) -> ir.Value:
        """(W, N, H, c) for each direction -> (W, K, N, H, c) and an axis for states or channels."""
        stacked = op.Concat(*(op.Unsqueeze(v, [1]) for v in values), axis=1)
        return op.Unsqueeze(stacked, [axis])

    ys = _scan_chunks(
        directions(us, -2),
        _softplus(directions(steps, -2)),
        op.Unsqueeze(op.Transpose(A, perm=[0, 2, 1]), [1, 2]),
        directions(Bs, -1),
        directions(Cs, -1),
        d_state,
        _recurrences(DOUBLE if A.dtype == ir.DataType.DOUBLE else FLOAT),
    )
    ys = [op.Squeeze(_part(ys, k, k + 1, 1), [1, -2]) for k in range(len(orders))]
    skip = op.Mul(x, op.ReduceSum(D, [0], keepdims=0))
    y = functools.reduce(op.Add, chunks.join(ys, orders), skip)
    return _to_output(y, A, out_dtype), op.ConstantOfShape([0])


def _to_output(y, A, out_dtype):
    """Cast a sum, which has the dtype of A, to the output's dtype."""
    return y if out_dtype == A.dtype else op.Cast(y, to=out_dtype)


@functools.cache
def _scan_op() -> Op:
    """Return the op of ``csrc/onnx/ss2d_scan_ort.cpp``."""
    tensors, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    schema = OpSchema(
        'SS2DScan',
        'mmvmamba',
        1,
        inputs=[tensors(name, 'tensor(float)') for name in _SCAN_INPUTS],
        outputs=[tensors('y', 'tensor(float)')],
        attributes=[attribute('orders', OpSchema.AttrType.INTS)],
    )
    return Op(Opset('mmvmamba', 1), schema.name, schema)


def _ss2d_scan_node(x, proj, dt_weight, dt_bias, A, D, orders, out_dtype, save_states):
    """Translate a float32 scan into one node of our own op, any other into standard ops."""
    arguments = (dt_weight, dt_bias, A, D, orders, out_dtype, save_states)
    if A.dtype != ir.DataType.FLOAT:
        return _ss2d_scan(x, proj, *arguments)
    x, proj = op.CastLike(x, A), op.CastLike(proj, A)
    y = _scan_op()(x, proj, dt_weight, dt_bias, A, D, orders=orders)
    return _to_output(y, A, out_dtype), op.ConstantOfShape([0])


def _adaptive_avg_pool2d(x, output_size):
    """Average over bins by two matrix products, (N, C, H, W) -> (N, C, *output_size)."""
    if tuple(output_size) == (1, 1):
        return op.ReduceMean(x, [2, 3], keepdims=1)
    rows, columns = (_bins(x, axis, size) for axis, size in zip((2, 3), output_size, strict=True))
    return op.MatMul(op.MatMul(rows, x), op.Transpose(columns, perm=[1, 0]))


def _bins(x: ir.Value, axis: int, bins: int) -> ir.Value:
    """Return the weight of each position of an axis in each bin, (bins, positions).

    Bin i of n positions is from floor(i n / bins) up to ceil((i + 1) n / bins).
    """
    n = op.Shape(x, start=axis, end=axis + 1)
    edges = op.Mul(list(range(bins + 1)), n)
    ceiling = op.Div(op.Add(edges, [bins - 1]), [bins])
    start = op.Unsqueeze(_part(op.Div(edges, [bins]), 0, bins, 0), [1])
    end = op.Unsqueeze(_part(ceiling, 1, bins + 1, 0), [1])
    zero, one = (op.Constant(value_int=v) for v in (0, 1))
    position = op.Range(zero, op.Squeeze(n, [0]), one)
    inside = op.And(op.GreaterOrEqual(position, start), op.Less(position, end))
    return op.Div(op.CastLike(inside, x), op.CastLike(op.Sub(end, start), x))


def save(program: torch.onnx.ONNXProgram, path: str | Path) -> None:
    """Save an exported model without redundant types and check the file.

    The exporter lists the types of weights a second time, in ``value_info``. ONNX Runtime's
    quantizer replaces the weights, but not those entries, and then rejects its own file. A file
    that ``onnx.checker`` does not accept is an error.

    Args:
        program (torch.onnx.ONNXProgram): The result of ``torch.onnx.export``.
        path (str | Path): The file to write.
    """
    inputs = set(program.model.graph.inputs)
    for value in program.model.graph.initializers.values():
        if value not in inputs:
            value.shape = value.type = None
            value.metadata_props.clear()
    program.save(path)
    check_model(path, full_check=True)


def _check_orders(model: nn.Module) -> None:
    scans = [module.scan for module in model.modules() if isinstance(module, SS2D)]
    for scan in scans:
        names = [] if scan == CASCADE else [o for o in resolve_pattern(scan) if type(o) is str]
        if names:
            raise ValueError(
                f'scan order {names[0]!r} can only be exported with a fixed image size; set '
                'dynamic=False'
            )


def export_file(
    model: nn.Module,
    images: Tensor,
    out: Path,
    names: Sequence[str] | None = None,
    *,
    dynamic: bool = False,
    fp16: bool = False,
    custom_op: bool = False,
    verbose: bool = False,
) -> None:
    """Export a model that takes only the images to a file and check the file.

    Args:
        model (nn.Module): The model, in eval mode.
        images (Tensor): A batch (N, C, H, W), whose size is that of the file unless ``dynamic`` is
            set.
        out (Path): The file to write.
        names (Sequence[str], optional): Names of the outputs. Defaults to None, the exporter's.
        dynamic (bool): Accept batches and images of any size. Defaults to False.
        fp16 (bool): Apply :func:`use_half_products`. Defaults to False.
        custom_op (bool): As in :func:`translations`. Defaults to False.
        verbose (bool): Print a line for each phase. Defaults to False.

    Raises:
        ValueError: If ``dynamic`` is set for a network with a registered scan order.
    """
    shapes = None
    if dynamic:
        _check_orders(model)
        shapes = ({0: 'batch', 2: 'height', 3: 'width'},)
        # The exporter specializes sizes of 1 and unifies equal ones.
        images = images.new_zeros(2, images.shape[1], 256, 352)
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        opset_version=20,
        input_names=['images'],
        output_names=names,
        dynamic_shapes=shapes,
        custom_translation_table=translations(custom_op),
        verbose=verbose,
    )
    if fp16:
        use_half_products(program.model)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(program, out)


def use_half_products(model: ir.Model) -> None:
    """Make the matrix products and convolutions of an exported model float16, in place.

    As in automatic mixed precision, everything else stays in float32: the scans with the projection
    of their time steps, norms, pooling, sums, inputs and outputs.

    Args:
        model (ir.Model): ``torch.onnx.export(...).model``, made with :func:`translations`.
    """
    main_graph, half = model.graph, {}
    # The namespace of a node ends with the PyTorch op that it comes from.
    translated = tuple(f': {target}' for target in translations())
    for node in list(main_graph):
        if node.op_type not in ('MatMul', 'Gemm', 'Conv'):
            continue
        if node.metadata_props.get('namespace', '').endswith(translated):
            continue
        if node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
            continue
        for i, value in enumerate(node.inputs):
            if value is not None:
                if value not in half:
                    half[value] = _as_half(main_graph, value, node)
                node.replace_input_with(i, half[value])
        out = node.outputs[0]
        cast = ir.node('Cast', [out], attributes={'to': ir.DataType.FLOAT})
        back = cast.outputs[0]
        # An output of the model keeps its name.
        back.name, out.name = out.name, f'{out.name}_product'
        back.shape, back.dtype = out.shape, ir.DataType.FLOAT
        ir.convenience.replace_all_uses_with(out, back, replace_graph_outputs=True)
        cast.replace_input_with(0, out)
        out.dtype = ir.DataType.FLOAT16
        main_graph.insert_after(node, cast)
    RemoveUnusedNodesPass()(model)  # weights in float32


def _as_half(main_graph: ir.Graph, value: ir.Value, before: ir.Node) -> ir.Value:
    if value.const_value is not None and value.is_initializer():
        tensor = ir.tensor(value.const_value.numpy().astype('float16'), name=f'{value.name}_half')
        new = ir.Value(name=tensor.name, const_value=tensor)
        new.shape, new.dtype = tensor.shape, tensor.dtype
        main_graph.register_initializer(new)
        return new
    cast = ir.node('Cast', [value], attributes={'to': ir.DataType.FLOAT16})
    new = cast.outputs[0]
    new.name, new.shape, new.dtype = f'{value.name}_half', value.shape, ir.DataType.FLOAT16
    main_graph.insert_before(before, cast)
    return new
