"""Export a classifier, a segmentor, or a detector's backbone and neck to ONNX.

The graph uses the standard ops of opset 20, plus our op for the scan with --custom-op. The input is
a batch of images (N, C, H, W), normalized and padded as by the model's data preprocessor. The
outputs are a classifier's scores before softmax, a segmentor's logits at the size of the input, or
a detector's feature maps.

Instead of a config, pass a name from mmvmamba.list_models(), such as vmamba_tiny, to export a
classifier, or a backbone with --part backbone. This only needs torch, onnx and onnxscript.

Example:
    python tools/deployment/export_onnx.py configs/vmamba/vmamba-t_8xb128_in1k.py \
        vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba-t.onnx --dynamic --check
    python tools/deployment/export_onnx.py vmamba_tiny vssm1_tiny_0230s_ckpt_epoch_264.pth \
        backbone.onnx --part backbone
"""

import argparse
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path

try:
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401
except ImportError as error:
    raise SystemExit(f'error: {error}; install it with pip install "mmvmamba[onnx]"') from None
import torch
from torch import Tensor, nn

from mmvmamba.analysis import measure
from mmvmamba.export.onnx import export_file
from mmvmamba.export.onnxruntime import open_session
from mmvmamba.export.parts import (
    SHAPES,
    ExportedModel,
    add_arguments,
    load_network,
    load_part,
    output_names,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument('out', type=Path, help='output file, OUT.onnx')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='image size (default: 224 224 for classification, 800 1344 for detection, 512 512 for '
        'segmentation)',
    )
    parser.add_argument('--batch', type=int, default=1, help='batch size (default: 1)')
    parser.add_argument(
        '--dynamic', action='store_true', help='accept any batch size and image size'
    )
    parser.add_argument(
        '--fp16',
        action='store_true',
        help='run matrix products and convolutions in float16, everything else in float32',
    )
    parser.add_argument(
        '--custom-op',
        action='store_true',
        help='use our op for each scan, which needs our kernels in ONNX Runtime (see '
        'docs/deployment.md)',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='compare results and times of the file in ONNX Runtime with PyTorch, on the CPU',
    )
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[ExportedModel, tuple[int, int]]:
    """Return the model and the default size (H, W) of its images."""
    if not Path(args.config).suffix:
        if getattr(args, 'cfg_options', None):
            raise ValueError(f'--cfg-options needs a config, but got the name {args.config!r}')
        return load_network(args.config, args.checkpoint, args.part), SHAPES['mmpretrain']
    try:
        from mmvmamba.engine import cli
    except ImportError as error:
        raise ValueError(
            f'config {args.config!r} needs OpenMMLab ({error}); install it with pip install '
            '"mmvmamba[onedl]"'
        ) from error
    cfg = cli.load_config(args)
    return load_part(cfg, args.checkpoint, args.part), SHAPES[cli.task_of(cfg)]


def compare(model: nn.Module, images: Tensor, path: Path, custom_op: bool) -> None:
    """Print the largest errors and the median times of a file on the CPU, compared with PyTorch."""
    session = open_session(path, custom_op)
    inputs = {'images': images.numpy()}
    for value, got, want in zip(
        session.get_outputs(), session.run(None, inputs), model(images), strict=True
    ):
        error = float((torch.from_numpy(got) - want).abs().max())
        if not math.isfinite(error):
            raise ValueError(f'{path}: output {value.name} has non-finite values')
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
        raise ValueError(
            f'--batch and --shape must be at least 1, but got {args.batch} and {args.shape}'
        )
    if args.check and find_spec('onnxruntime') is None:
        raise ValueError('--check needs onnxruntime; install it with pip install "mmvmamba[onnx]"')
    model, shape = load(args)
    channels = getattr(getattr(model.model, 'backbone', model.model), 'in_channels', 3)
    images = torch.randn(args.batch, channels, *(args.shape or shape))
    start = time.perf_counter()
    export_file(
        model,
        images,
        args.out,
        output_names(model, images),
        dynamic=args.dynamic,
        fp16=args.fp16,
        custom_op=args.custom_op,
        verbose=True,
    )
    seconds = time.perf_counter() - start
    print(f'{args.out}: {model.part} of {Path(args.config).name}, exported in {seconds:.0f} s')
    if args.check:
        compare(model, images, args.out, args.custom_op)


if __name__ == '__main__':
    try:
        from mmvmamba.engine import errors
    except ImportError:  # only torch is installed
        try:
            main()
        except (OSError, TypeError, ValueError) as error:
            sys.stderr.write(f'export_onnx.py: error: {error}\n')
            sys.exit(2)
    else:
        errors.run(main, ValueError, TypeError)
