"""Export a classifier, a segmentor, or a detector's backbone and neck to ONNX.

The graph has only ONNX's standard ops, of opset 20. The input is a batch of images (N, C, H, W) as
the model's data preprocessor returns them: normalised and padded. The outputs are a classifier's
scores before softmax, a segmentor's logits at the size of the input, or a detector's maps.

Example:
    python tools/deployment/export_onnx.py configs/vmamba/vmamba-t_8xb128_in1k.py \
        vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba-t.onnx --dynamic --check
"""

import argparse
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmvmamba.analysis import measure
from mmvmamba.analysis.model_flops import build_model
from mmvmamba.engine import cli, errors
from mmvmamba.engine.errors import UserError
from mmvmamba.models.loading import load_whole, read_checkpoint

OPSET = 20
SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1344), 'mmseg': (512, 512)}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('out', help='file to write, OUT.onnx')
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
        '--check',
        action='store_true',
        help='run the file in ONNX Runtime on the CPU and compare results and times with PyTorch',
    )
    return parser.parse_args()


class ExportedModel(nn.Module):
    """The exported part of a model, from a batch of normalised images to its outputs."""

    def __init__(self, model: nn.Module, part: str) -> None:
        super().__init__()
        self.model = model
        self.part = part

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps, or the scores or logits alone."""
        if self.part == 'backbone':
            return tuple(self.model.backbone(images))
        if self.part == 'neck':
            return tuple(self.model.extract_feat(images))
        out = self.model(images, mode='tensor')
        if hasattr(self.model, 'decode_head'):
            corners = self.model.align_corners
            out = F.interpolate(out, images.shape[2:], mode='bilinear', align_corners=corners)
        return (out,)


def choose_part(cfg: Config, model: nn.Module, part: str | None) -> str:
    """Return the part to export.

    Raises:
        UserError: If the model has no such part, or the part cannot be exported.
    """
    task = cli.task_of(cfg)
    if task not in SHAPES:
        raise UserError(f'default_scope must be one of {tuple(SHAPES)}, but got {task!r}')
    part = part or ('neck' if task == 'mmdet' else 'whole')
    if part == 'whole' and task == 'mmdet':
        raise UserError(
            '--part whole: only the backbone and neck of a detector can be exported; proposals, '
            'boxes and masks are left to the program that uses them'
        )
    if part == 'neck' and getattr(model, 'neck', None) is None:
        raise UserError(f'--part neck: {type(model).__name__} has no neck')
    if part == 'whole' and hasattr(getattr(model, 'decode_head', None), 'pixel_decoder'):
        raise UserError(
            f'--part whole: {type(model.decode_head).__name__} predicts from queries and needs '
            "the images' samples; use --part backbone"
        )
    return part


@torch.no_grad()
def export(
    model: nn.Module, images: Tensor, names: Sequence[str], dynamic: bool, half: bool, path: Path
) -> None:
    """Export a model to a file and check the file.

    Args:
        model (nn.Module): A model that takes only the images, in eval mode.
        images (Tensor): A batch (N, C, H, W).
        names (Sequence[str]): Names of the outputs.
        dynamic (bool): Whether N, H and W are free.
        half (bool): Whether products and convolutions are in float16.
        path (Path): The file.
    """
    import onnx

    from mmvmamba.export.onnx import translations, use_half_products

    shapes = None
    if dynamic:
        shapes = ({0: 'batch', 2: 'height', 3: 'width'},)
        # The exporter specializes sizes of 1 and unifies equal ones.
        images = images.new_zeros(2, images.shape[1], 256, 352)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=FutureWarning)
        warnings.filterwarnings('ignore', category=DeprecationWarning)
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=['images'],
            output_names=names,
            dynamic_shapes=shapes,
            custom_translation_table=translations(),
            verbose=False,
        )
    if half:
        use_half_products(program.model)
    program.save(path)
    onnx.checker.check_model(path, full_check=True)


@torch.no_grad()
def compare(model: nn.Module, images: Tensor, path: Path) -> str:
    """Run a file and its model on the CPU with PyTorch's number of threads.

    Returns:
        str: The largest error of each output, absolute and over the standard deviation of
        PyTorch's output, and the median times.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    inputs = {'images': images.numpy()}
    names = [value.name for value in session.get_outputs()]
    lines = []
    for name, got, want in zip(names, session.run(None, inputs), model(images), strict=True):
        got = torch.from_numpy(got)
        if not got.isfinite().all():
            raise ValueError(f'{path}: {name} has values that are not finite')
        error = (got - want).abs().max()
        text = f'largest error {error:.2e}, normalised {error / want.std():.2e}'
        lines.append(f'{name} {tuple(got.shape)}: {text}')
    calls = {'onnxruntime': lambda: session.run(None, inputs), 'torch': lambda: model(images)}
    times = measure.interleave(calls, images.device, seconds=10)
    ort, eager = (measure.summarise(times[name])['median_ms'] for name in calls)
    lines.append(
        f'ONNX Runtime {ort:.1f} ms, PyTorch {eager:.1f} ms, {ort / eager:.2f} times its time, '
        f'median of {len(times["torch"])}, {torch.get_num_threads()} thread(s)'
    )
    return '\n'.join(lines)


def check_arguments(args: argparse.Namespace) -> None:
    """Check the values of the arguments and that the packages are installed."""
    if args.shape and min(args.shape) < 1:
        raise UserError(f'--shape must be a height and a width of at least 1, but got {args.shape}')
    if args.batch < 1:
        raise UserError(f'--batch must be at least 1, but got {args.batch}')
    if not args.out.endswith('.onnx'):
        raise UserError(f'out must end with .onnx, but got {args.out!r}')
    for name in ('onnx', 'onnxscript', *(['onnxruntime'] if args.check else [])):
        if importlib.util.find_spec(name) is None:
            raise UserError(f'{name} is needed: pip install {name}')
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 6):
        raise UserError(f'the export needs torch 2.6 or newer, but this is {torch.__version__}')


def main() -> None:
    """Run the command line."""
    args = parse_args()
    check_arguments(args)
    logger = MMLogger.get_instance('export_onnx')
    cfg = cli.load_config(args)
    model = build_model(cfg)
    load_whole(model, read_checkpoint(args.checkpoint), args.checkpoint)
    part = choose_part(cfg, model, args.part)
    task = cli.task_of(cfg)
    channels = getattr(model.backbone, 'in_channels', 3)
    images = torch.randn(args.batch, channels, *(args.shape or SHAPES[task]))
    model = ExportedModel(model, part).eval()
    if part == 'whole':
        names = ['scores' if task == 'mmpretrain' else 'logits']
    else:
        with torch.no_grad():
            names = [f'map{i}' for i in range(len(model(images)))]
    path = Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    export(model, images, names, args.dynamic, args.fp16, path)
    logger.info(f'{path}: {part} of {Path(args.config).name}, opset {OPSET}')
    if args.check:
        logger.info(compare(model, images, path))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
