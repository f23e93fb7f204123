"""INT8 inference on a CPU: integer matrix products, everything else in float32.

The ranges of the inputs of each product are calibrated on images, and weights have a scale for each
output channel. Scans with the projections of their parameters, norms, activations and softmax stay
in float32.

- :func:`quantize` makes a program of ``torch.export``, and :func:`load` compiles it. Both need
  torchao.
- :func:`quantize_onnx` makes an ONNX file with QuantizeLinear and DequantizeLinear from a file in
  float32. It needs onnx, onnxscript and onnxruntime.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

import mmvmamba.ops  # noqa: F401  (registers the scan of a loaded program)

from .onnxruntime import open_session

#: The smallest side of an image of a program.
MIN_SIDE = 36


@torch.no_grad()
def quantize(
    model: nn.Module, batches: Iterable[Tensor], dynamic: bool = True
) -> torch.export.ExportedProgram:
    """Quantize the linear layers of a model for :func:`load`.

    The program accepts any batch size and images with sides of at least 36 pixels, because the last
    stage of a smaller image has a single position. Linear layers stay in float32 between quantize
    and dequantize ops, which the compiler fuses into integer products.

    Args:
        model (nn.Module): A model in eval mode whose only input is a batch (N, C, H, W) of images.
        batches (Iterable[Tensor]): Batches to calibrate the ranges with.
        dynamic (bool): Whether the program accepts any size. If False, it accepts only that of the
            batches, which must all have one shape. Defaults to True.

    Raises:
        ValueError: If the model is in training mode, there is no batch, or an image is too small.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    if model.training:
        raise ValueError('model must be in eval mode, but it is in training mode')
    settings = get_default_x86_inductor_quantization_config()
    quantizer = X86InductorQuantizer().set_function_type_qconfig(nn.functional.linear, settings)
    prepared, example = None, None
    for images in batches:
        if min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f'images must have at least {MIN_SIDE} pixels per side, but got a batch of shape '
                f'{tuple(images.shape)}'
            )
        if prepared is None:
            # The exporter specializes sizes of 1 and unifies equal ones.
            example = images.new_zeros(2, images.shape[1], 256, 352) if dynamic else images
            prepared = prepare_pt2e(_module(_export(model, example, dynamic)), quantizer)
        prepared(images)
    if prepared is None:
        raise ValueError('batches must contain at least one batch of images')
    return _export(convert_pt2e(prepared), example, dynamic)


def _export(model: nn.Module, example: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    sizes = ({i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)},) if dynamic else None
    return torch.export.export(model, (example,), dynamic_shapes=sizes)


def _module(program: torch.export.ExportedProgram) -> nn.Module:
    # The guards fix the parity of sizes on which the graph does not depend: that of the last map
    # for the pooling of an FPN.
    return program.module(check_guards=False)


def load(path: str | PathLike) -> Callable[[Tensor], Any]:
    """Load a program of :func:`quantize` that was saved with ``torch.export.save``.

    The result takes a batch of images. Its first call compiles the program, and a new image size
    may recompile it.
    """
    # Registers the ops of the program, and the fusions with inductor.
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

    compiled = torch.compile(_module(torch.export.load(path)))

    # Freezing brings the weights into the layout of the integer kernels, once. It is ignored unless
    # gradients are off and it is on in each call, any of which may compile.
    @torch.no_grad()
    @torch._inductor.config.patch(freezing=True)
    def run(images: Tensor) -> Any:
        return compiled(images)

    return run


def quantize_onnx(source: str | PathLike, out: str | PathLike, batches: Iterable[Tensor]) -> None:
    """Quantize the linear layers and convolutions of an ONNX file in float32.

    Args:
        source (str | PathLike): A file made with :func:`mmvmamba.export.onnx.translations`, with or
            without the custom op, whose only input is a batch of images.
        out (str | PathLike): The file to write.
        batches (Iterable[Tensor]): Batches to calibrate the ranges with.

    Raises:
        ValueError: If there is no batch.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import MinMaxCalibrater
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    model = _join_biases(onnx.load(source))
    custom = {node.output[0] for node in model.graph.node if node.domain == 'mmvmamba'}
    # Shape inference stops at a shape that contradicts its own. It does not know our op.
    types = [value for value in model.graph.value_info if value.name in custom]
    del model.graph.value_info[:]
    model.graph.value_info.extend(types)
    op_types = ['MatMul', 'Gemm', 'Conv']

    class Calibrator(MinMaxCalibrater):
        def create_inference_session(self) -> None:
            self.infer_session = open_session(self.augmented_model_path, bool(custom))

    feeds = ({model.graph.input[0].name: images.numpy()} for images in batches)
    # The steps of ONNX Runtime's quantize_static (1.31), whose sessions cannot have a custom op.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        onnx.save(model, path)
        augmented = str(Path(folder) / 'augmented.onnx')
        calibrator = Calibrator(path, op_types, augmented, moving_average=True)
        calibrator.augment_graph()
        calibrator.create_inference_session()
        calibrator.collect_data(SimpleNamespace(get_next=lambda: next(feeds, None)))
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(path),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=calibrator.compute_data(),
            nodes_to_quantize=[],
            nodes_to_exclude=[
                node.name
                for node in model.graph.node
                if _belongs_to_scan({entry.key: entry.value for entry in node.metadata_props})
            ],
            op_types_to_quantize=op_types,
            # Integer convolutions need a quantized output, products do not. Products of two
            # activations are average pooling.
            extra_options=dict(
                MatMulConstBOnly=True, OpTypesToExcludeOutputQuantization=['Gemm', 'MatMul']
            ),
        )
        quantizer.quantize_model()
    quantizer.model.save_model_to_file(out)


def _join_biases(model: Any) -> Any:
    """Make each product with a bias one Gemm.

    ONNX Runtime would otherwise run a quantized MatMul followed by an Add in float32, or add the
    bias in a separate pass.
    """
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

    def layer(op, x, weight, bias):
        return op.Add(op.MatMul(x, weight, _outputs=['product']), bias)

    def is_layer(context, weight, bias, product, **_) -> bool:
        w, b = weight.const_value, bias.const_value
        if w is None or b is None or len(w.shape) != 2 or tuple(b.shape) != (w.shape[1],):
            return False
        return not _belongs_to_scan(product.producer().metadata_props)

    def gemm(op, x, weight, bias, **_):
        inputs, outputs = weight.const_value.shape
        rows = op.Reshape(x, op.Constant(value_ints=[-1, inputs]))
        shape = op.Concat(op.Shape(x, end=-1), op.Constant(value_ints=[outputs]), axis=0)
        return op.Reshape(op.Gemm(rows, weight, bias), shape)

    rules = RewriteRuleSet([RewriteRule(layer, gemm, is_layer)], commute=True)
    return rewrite(model, rules)


def _belongs_to_scan(properties: Mapping[str, str]) -> bool:
    """Return True for the properties of a node of a scan or of the projection of its parameters."""
    # The modules from the outermost on, each with its type, then the op.
    *_, module, _ = ('', *properties.get('namespace', '').split('/'))
    return module.endswith('.SS2D')
