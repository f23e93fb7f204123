"""INT8 inference on a CPU: integer matrix products, everything else in float32.

The ranges of the inputs of each product are calibrated on images, weights have a scale for each
output channel. Scans with the projections of their parameters, norms, activations and softmax stay
in float32.

- :func:`quantize` makes a program of ``torch.export``, and :func:`load` compiles it. Both need
  torchao.
- :func:`quantize_onnx` makes an ONNX file with QuantizeLinear and DequantizeLinear from a file in
  float32. It needs onnxruntime.
"""

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

import mmvmamba.ops  # noqa: F401  (registers the scan of a loaded program)

#: The smallest side of an image of a program.
MIN_SIDE = 36


@torch.no_grad()
def quantize(model: nn.Module, batches: Iterable[Tensor]) -> torch.export.ExportedProgram:
    """Quantize the linear layers of a model for :func:`load`.

    The program accepts any batch size and images with sides of at least 36 pixels: the last stage
    of a smaller image is a single position. Linear layers stay in float32 between quantize and
    dequantize ops, which the compiler fuses into integer products.

    Args:
        model (nn.Module): A model in eval mode whose only input is a batch (N, C, H, W) of images.
        batches (Iterable[Tensor]): Batches to calibrate the ranges with.

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
                f'images must have sides of at least {MIN_SIDE} pixels, but got a batch of shape '
                f'{tuple(images.shape)}'
            )
        if prepared is None:
            # The exporter specializes sizes of 1 and unifies equal ones.
            example = images.new_zeros(2, images.shape[1], 256, 352)
            prepared = prepare_pt2e(_module(_export(model, example)), quantizer)
        prepared(images)
    if prepared is None:
        raise ValueError('batches must hold at least one batch of images')
    return _export(convert_pt2e(prepared), example)


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    sizes = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    return torch.export.export(model, (example,), dynamic_shapes=(sizes,))


def _module(program: torch.export.ExportedProgram) -> nn.Module:
    # The guards fix the parity of sizes on which the graph does not depend: that of the last map
    # for the pooling of an FPN.
    return program.module(check_guards=False)


def load(path: str | PathLike) -> Callable[[Tensor], Any]:
    """Load a program of :func:`quantize` that was saved with ``torch.export.save``.

    The result takes a batch of images. Its first call compiles the program, and another size of the
    images may compile it again.
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
        source (str | PathLike): A file made with :func:`mmvmamba.export.onnx.translations`, whose
            only input is a batch of images.
        out (str | PathLike): The file to write.
        batches (Iterable[Tensor]): Batches to calibrate the ranges with.

    Raises:
        ValueError: If there is no batch.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.name, self.batches = name, iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.batches, None)
            return None if images is None else {self.name: images.numpy()}

    model = onnx.load(source)
    # Shape inference stops at a shape that contradicts its own.
    del model.graph.value_info[:]
    quantize_static(
        model,
        out,
        Reader(model.graph.input[0].name),
        op_types_to_quantize=['MatMul', 'Gemm', 'Conv'],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[node.name for node in model.graph.node if _belongs_to_scan(node)],
        # ONNX Runtime has integer products only between quantized outputs. Those of the last layer
        # stay in float32; products of two activations are average pooling.
        extra_options=dict(
            CalibMovingAverage=True,
            MatMulConstBOnly=True,
            OpTypesToExcludeOutputQuantization=['Gemm'],
        ),
    )


def _belongs_to_scan(node: Any) -> bool:
    """Return True for a node of a scan or of the projection of its parameters."""
    properties = {entry.key: entry.value for entry in node.metadata_props}
    # The modules from the outermost on, each with its type, then the op.
    *_, module, _ = ('', *properties.get('namespace', '').split('/'))
    return module.endswith('.SS2D')
