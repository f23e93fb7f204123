"""Export a classifier, a segmentor, or a detector's backbone and neck to ONNX.

The graph has only ONNX's standard ops, of opset 20, and with --custom-op our own for the scan. The
input is a batch of images (N, C, H, W) as the model's data preprocessor returns them: normalized
and padded. The outputs are a classifier's scores before softmax, a segmentor's logits at the size
of the input, or a detector's maps.

Example:
    python tools/deployment/export_onnx.py configs/vmamba/vmamba-t_8xb128_in1k.py \
        vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba-t.onnx --dynamic --check
"""

import argparse
import math
import time
from pathlib import Path

try:
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401
except ImportError as error:
    raise SystemExit(f'error: {error}; pip install "mmvmamba[onnx]" installs it') from None
import torch
from torch import Tensor, nn

from mmvmamba.analysis import measure
from mmvmamba.analysis.model_flops import build_model
from mmvmamba.engine import cli, errors
from mmvmamba.engine.errors import UserError
from mmvmamba.export.onnx import save, translations, use_half_products
from mmvmamba.export.onnxruntime import register_custom_ops
from mmvmamba.export.parts import SHAPES, ExportedModel, choose_part, output_names
from mmvmamba.models.loading import load_whole, read_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('out', type=Path, help='file to write, OUT.onnx')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='image size (default: 224 224 for classification, 800 1344 for detection, 512 512 for '
        'segmentation)',
    )
    parser.add_argument('--batch', type=int, default=1, help='images in a batch (default: 1)')
    parser.add_argument(
        '--dynamic', action='store_true', help='accept batches and images of any size'
    )
    parser.add_argument(
        '--part',
        choices=('whole', 'neck', 'backbone'),
        help='whole: classifier or segmentor; neck: backbone and neck; backbone (default: neck for '
        'detection, else whole)',
    )
    parser.add_argument(
        '--fp16',
        action='store_true',
        help='matrix products and convolutions in float16, all else in float32',
    )
    parser.add_argument(
        '--custom-op',
        action='store_true',
        help='write each scan as one node of our own op, which needs our kernels in ONNX Runtime, '
        'see docs/deployment.md',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='run the file in ONNX Runtime on the CPU and compare results and times with PyTorch',
    )
    return parser.parse_args()


def export(
    model: nn.Module,
    images: Tensor,
    names: list[str],
    out: Path,
    *,
    dynamic: bool = False,
    fp16: bool = False,
    custom_op: bool = False,
) -> None:
    """Export a model that takes only the images to a file and check the file."""
    shapes = None
    if dynamic:
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
        verbose=True,  # a line for each phase
    )
    if fp16:
        use_half_products(program.model)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(program, out)


def compare(model: nn.Module, images: Tensor, path: Path, custom_op: bool) -> None:
    """Print the largest errors and the median times of a file on the CPU, compared with PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait in a loop would slow what runs next.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    if custom_op:
        register_custom_ops(options)
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    inputs = {'images': images.numpy()}
    for value, got, want in zip(
        session.get_outputs(), session.run(None, inputs), model(images), strict=True
    ):
        error = float((torch.from_numpy(got) - want).abs().max())
        if not math.isfinite(error):
            raise ValueError(f'{path}: {value.name} has values that are not finite')
        relative = error / float(want.std())
        print(f'{value.name} {got.shape}: largest error {error:.2e}, normalized {relative:.2e}')
    calls = {'onnxruntime': lambda: session.run(None, inputs), 'torch': lambda: model(images)}
    times = measure.interleave(calls, images.device, seconds=10)
    ort, eager = (measure.summarize(times[name])['median_ms'] for name in calls)
    print(
        f'ONNX Runtime {ort:.1f} ms, PyTorch {eager:.1f} ms, ratio {ort / eager:.2f}, '
        f'median of {len(times["torch"])}, {torch.get_num_threads()} thread(s)'
    )


@torch.no_grad()
def main() -> None:
    args = parse_args()
    if min(args.batch, *(args.shape or [1])) < 1:
        raise UserError(
            f'--batch and --shape must be at least 1, but got {args.batch} and {args.shape}'
        )
    cfg = cli.load_config(args)
    model = build_model(cfg)
    load_whole(model, read_checkpoint(args.checkpoint), args.checkpoint)
    part = choose_part(cfg, model, args.part)
    task = cli.task_of(cfg)
    channels = getattr(model.backbone, 'in_channels', 3)
    images = torch.randn(args.batch, channels, *(args.shape or SHAPES[task]))
    model = ExportedModel(model, part).eval()
    start = time.perf_counter()
    export(
        model,
        images,
        output_names(cfg, model, images),
        args.out,
        dynamic=args.dynamic,
        fp16=args.fp16,
        custom_op=args.custom_op,
    )
    seconds = time.perf_counter() - start
    print(f'{args.out}: {part} of {Path(args.config).name}, exported in {seconds:.0f} s')
    if args.check:
        compare(model, images, args.out, args.custom_op)


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
