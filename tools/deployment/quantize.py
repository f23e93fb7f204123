"""Quantize a classifier, a segmentor, or a detector's backbone and neck to INT8 for a CPU.

Ranges are calibrated on training images, loaded with the test pipeline. The file accepts batches of
images of any size, normalized and padded as by the model's data preprocessor. Run a program
(OUT.pt2) with `mmvmamba.export.int8.load`, and an ONNX file with ONNX Runtime or OpenVINO.

Example:
    python tools/deployment/quantize.py configs/vmamba/vmamba-t_8xb128_in1k.py \
        vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba-t.pt2 --check --evaluate
"""

import argparse
import contextlib
import copy
import functools
import importlib.util
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import Tensor, nn

from mmvmamba.analysis import measure
from mmvmamba.engine import cli, errors
from mmvmamba.engine.checks.configs import check_data, leaf_datasets
from mmvmamba.engine.errors import UserError
from mmvmamba.export import int8
from mmvmamba.export.evaluation import collect_results, compare_metrics, replace_part
from mmvmamba.export.parts import add_arguments, load_part, output_names

NEEDED = {'inductor': ('torchao',), 'onnx': ('onnx', 'onnxscript', 'onnxruntime')}
EXTRA = {'inductor': 'int8', 'onnx': 'onnx'}
Run = Callable[[Tensor], tuple[Tensor, ...]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument('out', type=Path, help='output file, OUT.pt2 or OUT.onnx')
    parser.add_argument(
        '--backend',
        choices=tuple(NEEDED),
        default='inductor',
        help='inductor: a program of torch.export; onnx: an ONNX file (default: inductor)',
    )
    parser.add_argument(
        '--custom-op',
        action='store_true',
        help='onnx: use our op for each scan (ONNX Runtime only)',
    )
    parser.add_argument(
        '--calibration-images',
        type=int,
        default=64,
        help='number of calibration images (default: 64)',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='compare results and times with float32 on one training image',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='image size for --check (default: the size from the pipeline)',
    )
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help="evaluate the config's test metrics in float32 and INT8, with the interval of their "
        'difference',
    )
    return parser.parse_args()


def check_packages(backend: str) -> None:
    """Raise UserError if a package that a backend needs is not installed."""
    for name in NEEDED[backend]:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'--backend {backend} needs {name}; install it with pip install '
                f'"mmvmamba[{EXTRA[backend]}]"'
            )


def calibration_images(cfg: Config, model: nn.Module, count: int) -> Iterator[Tensor]:
    """Yield training images as the model takes them, one in a batch."""
    loader = copy.deepcopy(cfg.test_dataloader)
    pipeline = next(leaf_datasets(loader.dataset)).pipeline
    loader.update(dataset=copy.deepcopy(cfg.train_dataloader.dataset), batch_size=1)
    loader.sampler = dict(type='DefaultSampler', shuffle=True)
    for dataset in leaf_datasets(loader.dataset):
        dataset.pipeline = pipeline
    for data in itertools.islice(Runner.build_dataloader(loader, seed=0), count):
        yield model.data_preprocessor(data, training=False)['inputs']


def onnx_runs(path: Path, custom_op: bool) -> dict[str, Run]:
    """Load an ONNX file in the runtimes that are installed, on as many threads as PyTorch's."""
    from mmvmamba.export.onnxruntime import open_session

    session = open_session(path, custom_op)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {'images': images.numpy()})))

    runs = {'ONNX Runtime': run}
    if not custom_op and importlib.util.find_spec('openvino') is not None:
        runs['OpenVINO'] = openvino_run(path, torch.get_num_threads())
    return runs


def openvino_run(path: Path, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    settings = dict(INFERENCE_NUM_THREADS=threads, INFERENCE_PRECISION_HINT='f32')

    # OpenVINO 2026.4 computes quantized convolutions of free size wrongly.
    @functools.cache
    def compiled(shape: tuple[int, ...]) -> openvino.CompiledModel:
        model.reshape(shape)
        return core.compile_model(model, 'CPU', settings)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs = compiled(tuple(images.shape))(images.numpy())
        return tuple(torch.from_numpy(value.copy()) for value in outputs.values())

    return run


def check(model: nn.Module, images: Tensor, runs: dict[str, dict[str, Run]]) -> None:
    """Print errors and times on one image, compared with float32."""
    wanted = model(images)
    calls = {'PyTorch': lambda: model(images)}
    for runtime, pair in runs.items():
        for precision, run in pair.items():
            for i, (got, want) in enumerate(zip(run(images), wanted, strict=True)):
                error = float((got - want).norm() / want.norm())
                print(f'{runtime}, {precision}: relative error of output {i} {error:.2e}')
            calls[f'{runtime}, {precision}'] = functools.partial(run, images)
    times = measure.interleave(calls, images.device, seconds=20)
    ms = {name: measure.summarize(values)['median_ms'] for name, values in times.items()}
    print(f'PyTorch, float32: {ms["PyTorch"]:.1f} ms')
    for runtime in runs:
        slow, fast = (ms[f'{runtime}, {precision}'] for precision in ('float32', 'INT8'))
        print(f'{runtime}: float32 {slow:.1f} ms, INT8 {fast:.1f} ms, ratio {fast / slow:.2f}')
    print(
        f'{tuple(images.shape)}, {torch.get_num_threads()} thread(s), median of '
        f'{len(times["PyTorch"])}'
    )


def evaluate(cfg: Config, model: nn.Module, part: str, runs: dict[str, dict[str, Run]]) -> None:
    """Print the metrics of float32 and of INT8."""
    MMLogger.get_current_instance().setLevel('WARNING')  # a table for each group of images
    reference = collect_results(cfg, model)
    for runtime, pair in runs.items():
        results = collect_results(cfg, replace_part(model, part, pair['INT8']))
        with contextlib.redirect_stdout(io.StringIO()):  # COCO's tables
            metrics = compare_metrics(reference, results)
        for name, metric in metrics.items():
            print(
                f'{runtime}, {name}: float32 {metric.reference:.4g}, INT8 {metric.other:.4g}, '
                f'difference {metric.other - metric.reference:+.2g} +- {metric.margin:.2g}'
            )


@torch.no_grad()
def main() -> None:
    args = parse_args()
    if min(args.calibration_images, *(args.shape or [1])) < 1:
        raise UserError(
            '--calibration-images and --shape must be at least 1, but got '
            f'{args.calibration_images} and {args.shape}'
        )
    if args.custom_op and args.backend != 'onnx':
        raise UserError('--custom-op needs --backend onnx')
    check_packages(args.backend)
    cfg = cli.load_config(args)
    for name in ('train_dataloader', 'test_dataloader'):
        if not cfg.get(name):
            raise UserError(f'calibration needs a {name} in the config')
    check_data(cfg, 'train', 'test')
    if 'data_preprocessor' in cfg:  # MMEngine's runner passes it to the model
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    exported = load_part(cfg, args.checkpoint, args.part)
    model, part = exported.model, exported.part
    batches = calibration_images(cfg, model, args.calibration_images)
    images = next(calibration_images(cfg, model, 1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.backend == 'inductor':
        torch.export.save(int8.quantize(exported, batches), args.out)
        runs = {'inductor': {'float32': torch.compile(exported), 'INT8': int8.load(args.out)}}
    else:
        from mmvmamba.export.onnx import export_file

        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / 'float32.onnx'
            names = output_names(exported, images)
            export_file(
                exported,
                images,
                source,
                names,
                dynamic=True,
                custom_op=args.custom_op,
                verbose=True,
            )
            int8.quantize_onnx(source, args.out, batches)
            slow, fast = (onnx_runs(path, args.custom_op) for path in (source, args.out))
        runs = {name: {'float32': slow[name], 'INT8': fast[name]} for name in slow}
    print(f'{args.out}: {part} of {Path(args.config).name} in INT8')
    if args.check:
        if args.shape:
            images = F.interpolate(images, args.shape, mode='bilinear')
        check(exported, images, runs)
    if args.evaluate:
        evaluate(cfg, model, part, runs)


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
