"""Speed and memory of VMamba compared with Swin, ConvNeXt and DeiT.

Each model returns the normalized features of its last stage. Inference runs without gradients;
a training step is forward, and backward from random gradients, without an optimizer. AMP is
bfloat16 autocast on a CPU and float16 autocast on a GPU. The models of a comparison run in turn.
The others are mmpretrain's, or else timm's or torchvision's: the first of the three that can be
imported, or the one that ``--peers`` names. `authors-t` is the authors' VMamba-T (GPU only):
PYTHONPATH must include a clone of github.com/MzeroMiko/VMamba and its built kernels.

`vmamba-t-nocore` is VMamba-T with the core of each SS2D (x_proj, dt, scan, merge) replaced by the
identity. Where it runs beside `vmamba-t`, the core's share of the time is printed.
`vmamba-t-native` and `vmamba-t-triton` are VMamba-T with that backend of the scans.

``--cpu`` runs a fixed list of settings of VMamba-T, Swin-T and ConvNeXt-T, those of
docs/benchmarks.md, in 10 to 15 minutes on two cores. Its mode `deployed` is inference in PyTorch,
in float32 and as an INT8 program, and in ONNX Runtime, all in turn: run `onnx` has standard ops,
and in `onnx-custom` the scans are our own op. A network that cannot be exported is left out.

Examples:
    python benchmarks/backbone.py --cpu --out work_dirs/benchmarks/cpu.json
    python benchmarks/backbone.py --quick --out work_dirs/benchmarks/backbone.json
    python benchmarks/backbone.py --models vmamba-t swin-t --sizes 768 --runs eager compiled
    python benchmarks/backbone.py --models vmamba-t vmamba-t-nocore --sizes 224 768
    python benchmarks/backbone.py --models vmamba-t --sizes 384 1536      # time per pixel
"""

import argparse
import functools
import importlib
import itertools
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import common
import torch
from common import import_error, logger
from profiling import profile_passes, rest_share
from torch import nn

from mmvmamba.analysis import measure
from mmvmamba.analysis.measure import MIB, Call, Row
from mmvmamba.nn import SS2D, VMambaNet
from mmvmamba.ops import BACKENDS

#: Precision and run of a model.
Way = tuple[str, str]

SCALES = {'t': 'tiny', 's': 'small', 'b': 'base'}
#: Of Swin and ConvNeXt.
DROP_PATH = {'t': 0.2, 's': 0.3, 'b': 0.5}
BASELINES = ['swin-t', 'convnext-t']
#: What a VMamba's name may end in.
VARIANTS = ('nocore', 'native', 'triton')
#: Functions of the authors' code that build the released models.
AUTHORS = {'t': 'vmamba_tiny_s1l8', 's': 'vmamba_small_s2l15', 'b': 'vmamba_base_s2l15'}
#: The ways of mode 'deployed'. The files of Swin and ConvNeXt are the same in both ONNX runs.
DEPLOYED = [
    ('fp32', 'eager'),
    *itertools.product(('fp32', 'int8'), ('compiled', 'onnx', 'onnx-custom')),
]
#: Packages that mode 'deployed' needs.
EXPORTERS = ('onnxscript', 'onnxruntime', 'torchao')
#: Size, batch and mode of the comparisons of ``--cpu``, then the ways in each.
CPU_SETTINGS = [
    *(((side, side), 1, 'inference', ('fp32', 'eager')) for side in (224, 384, 768, 2048)),
    *(((side, side), 1, 'inference', ('amp', 'eager')) for side in (224, 384)),
    ((224, 224), 8, 'train', ('fp32', 'eager')),
    *(((side, side), 1, 'inference', ('fp32', 'compiled')) for side in (224, 384, 768)),
    *(((side, side), 1, 'inference', ('fp32', 'frozen')) for side in (224, 768)),
    ((224, 224), 1, 'deployed', *DEPLOYED),
]
COLUMNS = dict(
    model='model',
    size='size',
    batch='batch',
    mode='mode',
    precision='precision',
    run='run',
    median_ms='ms',
    spread='spread',
    images_per_s='images/s',
    ns_per_pixel='ns/pixel',
    extra_mib='extra MiB',
    peak_mib='peak MiB',
    **{'over eager': '/ eager'},
    **{f'over {name}': f'/ {name}' for name in BASELINES},
)


# ---- models --------------------------------------------------------------------------------------


def _identity_core(x: torch.Tensor, *_) -> torch.Tensor:
    return x


def build_vmamba(scale: str, variant: str | None = None) -> nn.Module:
    """VMamba up to the normalized map of its last stage.

    Args:
        scale (str): 't', 's' or 'b'.
        variant (str, optional): One of :data:`VARIANTS`: without the scans, or with a backend.
            Defaults to None.
    """
    backend = variant if variant in BACKENDS else 'auto'
    model = VMambaNet(SCALES[scale], out_indices=(3,), backend=backend)
    if variant == 'nocore':
        for module in model.modules():
            if isinstance(module, SS2D):
                module.core = _identity_core
    return model


def build_peer(family: str, scale: str, size: tuple[int, int], source: str) -> nn.Module:
    """Build a peer's backbone up to the normalized map of its last stage.

    Args:
        family (str): 'swin', 'convnext' or 'deit'.
        scale (str): 't', 's' or 'b'.
        size (tuple[int, int]): Height and width of the images.
        source (str): A key of :data:`PEERS`.

    Raises:
        ImportError: If the package is not installed.
        ValueError: If the package has no such model, or it does not take images of this size.
    """
    if family == 'deit' and (size[0] % 16 or size[1] % 16):
        raise ValueError('the image size is not a multiple of its patch size of 16')
    return PEERS[source](family, SCALES[scale], size, DROP_PATH[scale])


def build_mmpretrain(
    family: str, scale: str, size: tuple[int, int], drop_path_rate: float
) -> nn.Module:
    """Build a backbone of mmpretrain."""
    from mmpretrain.models.backbones import ConvNeXt, SwinTransformer, VisionTransformer

    if family == 'deit':
        return VisionTransformer(f'deit-{scale}', img_size=size, drop_path_rate=0.1)
    if family == 'convnext':
        return ConvNeXt(scale, drop_path_rate=drop_path_rate)
    # From 224 px on no map is smaller than a window.
    return SwinTransformer(scale, drop_path_rate=drop_path_rate, pad_small_map=True)


class TimmFeatures(nn.Module):
    """A model of timm without its pooling and its classifier."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # ConvNeXt normalizes in its head.
        self.norm = model.head.norm if type(model).__name__ == 'ConvNeXt' else nn.Identity()

    def forward(self, x):
        return self.norm(self.model.forward_features(x))


def build_timm(family: str, scale: str, size: tuple[int, int], drop_path_rate: float) -> nn.Module:
    """Build a backbone of timm."""
    import timm

    names = {
        'swin': f'swin_{scale}_patch4_window7_224',
        'convnext': f'convnext_{scale}',
        'deit': f'deit_{scale}_patch16_224',
    }
    sized = {} if family == 'convnext' else {'img_size': size}
    model = timm.create_model(names[family], num_classes=0, drop_path_rate=drop_path_rate, **sized)
    return TimmFeatures(model)


def build_torchvision(
    family: str, scale: str, size: tuple[int, int], drop_path_rate: float
) -> nn.Module:
    """Build a backbone of torchvision, whose Swin ends channels last."""
    import torchvision

    if family == 'deit':
        raise ValueError('torchvision has no DeiT')
    if family == 'swin':  # its drop path rates are those of DROP_PATH
        model = getattr(torchvision.models, f'swin_{scale[0]}')(weights=None)
    else:
        build = getattr(torchvision.models, f'convnext_{scale}')
        model = build(weights=None, stochastic_depth_prob=drop_path_rate)
    norm = model.norm if family == 'swin' else model.classifier[0]
    return nn.Sequential(model.features, norm)


def build_authors(scale: str) -> nn.Module:
    """Build the authors' VMamba up to the normalized map of its last stage.

    Raises:
        ImportError: If the authors' code or their kernels are missing. Without the kernels, their
            code would scan in a loop over the positions.
    """
    importlib.import_module('selective_scan_cuda_oflex')
    module = importlib.import_module('classification.models.vmamba')
    model = getattr(module, AUTHORS[scale])()
    model.classifier = model.classifier.norm
    return model


PEERS = {'mmpretrain': build_mmpretrain, 'timm': build_timm, 'torchvision': build_torchvision}


def find_peers() -> str | None:
    """Find the first package of :data:`PEERS` that can be imported."""
    return next((name for name in PEERS if import_error(name) is None), None)


def model_names() -> list[str]:
    """All names that ``--models`` takes."""
    families = ('vmamba', 'swin', 'convnext', 'deit', 'authors')
    names = [f'{family}-{scale}' for family in families for scale in SCALES]
    return names + [f'vmamba-{scale}-{variant}' for scale in SCALES for variant in VARIANTS]


def build_model(name: str, size: tuple[int, int], peers: str | None) -> nn.Module:
    """Build a model by the name that ``--models`` takes.

    Raises:
        ImportError: If its package is not installed.
        ValueError: As :func:`build_peer`.
    """
    family, scale, *rest = name.split('-')
    if family == 'vmamba':
        return build_vmamba(scale, *rest)
    if family == 'authors':
        return build_authors(scale)
    if peers is None:
        raise ImportError('; '.join(f'{name}: {import_error(name)}' for name in PEERS))
    return build_peer(family, scale, size, peers)


def build_models(
    names: Sequence[str], size: tuple[int, int], peers: str | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Build the models that can be built here.

    Returns:
        tuple[dict, dict]: The models by name, and the reason for each that is left out.
    """
    models, missing = {}, {}
    for name in names:
        try:
            models[name] = build_model(name, size, peers)
        except (ImportError, ValueError) as error:
            missing[name] = str(error)
    return models, missing


# ---- measurement --------------------------------------------------------------------------------


def deployed_call(
    model: nn.Module, images: torch.Tensor, precision: str, run: str, stem: Path
) -> Call:
    """Return the inference of an exported model as a function without arguments.

    Args:
        model (nn.Module): The model, in eval mode.
        images (Tensor): Its input. The files are made for this size alone, because Swin-T cannot be
            exported otherwise.
        precision (str): 'fp32' or 'int8', calibrated on random images.
        run (str): 'compiled', 'onnx' or 'onnx-custom'.
        stem (Path): The path of the model's files without a suffix.
    """
    from mmvmamba.export import int8
    from mmvmamba.export.onnx import export_file
    from mmvmamba.export.onnxruntime import open_session

    batches = [torch.randn_like(images)]
    if run == 'compiled':
        path = stem.with_suffix('.pt2')
        torch.export.save(int8.quantize(model, batches, dynamic=False), path)
        return functools.partial(int8.load(path), images)
    custom_op = run == 'onnx-custom'
    path = stem.with_suffix(f'.{run}')
    if not path.exists():
        with torch.no_grad():
            export_file(model, images, path, custom_op=custom_op)
    if precision == 'int8':
        source, path = path, stem.with_suffix(f'.{run}-int8')
        int8.quantize_onnx(source, path, batches)
    return functools.partial(open_session(path, custom_op).run, None, {'images': images.numpy()})


def layout_of(name: str, args: argparse.Namespace) -> torch.memory_format:
    """Return the memory format of a model; the authors' code is written for contiguous maps."""
    if args.channels_last and not name.startswith('authors'):
        return torch.channels_last
    return torch.contiguous_format


def make_calls(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, torch.Tensor],
    mode: str,
    ways: Sequence[Way],
) -> dict[tuple[str, Way], Call]:
    """Return the calls of a comparison by model and way, without those that cannot be exported."""
    calls: dict[tuple[str, Way], Call] = {}
    with tempfile.TemporaryDirectory() as folder:
        for (name, model), (precision, run) in itertools.product(models.items(), ways):
            key, images = (name, (precision, run)), inputs[name]
            if precision != 'int8' and not run.startswith('onnx'):
                calls[key] = measure.make_call(
                    model, images, train=mode == 'train', amp=precision == 'amp', run=run
                )
                continue
            logger.info('  exporting %s, %s, %s', name, precision, run)
            try:
                call = deployed_call(model, images, precision, run, Path(folder) / name)
                call()  # compiles
                calls[key] = call
            except Exception as error:  # an exporter may raise anything
                reason = str(error).partition('\n')[0]
                logger.info('  left out: %s: %s', type(error).__name__, reason)
    return calls


def compare(
    args: argparse.Namespace,
    device: torch.device,
    size: tuple[int, int],
    batch: int,
    mode: str,
    *ways: Way,
) -> list[Row]:
    """Time all models in turn at one setting, then measure the memory of each.

    Args:
        args (argparse.Namespace): The command line.
        device (torch.device): The device.
        size (tuple[int, int]): Height and width of the images.
        batch (int): Images at a time.
        mode (str): 'inference', 'train' or 'deployed'.
        *ways (tuple[str, str]): Precision and run, all of which are timed in turn.
    """
    where = dict(size=measure.size_text(*size), batch=batch, mode=mode)
    logger.info(
        '%s: %s',
        ', '.join(f'{key} {value}' for key, value in where.items()),
        '; '.join(f'{precision}, {run}' for precision, run in ways),
    )
    if any(run != 'eager' for _, run in ways):
        logger.info('  compiling, which can take a minute for each model')
        measure.allow_recompilation()
    models, missing = build_models(args.models, size, args.peers)
    for name, reason in missing.items():
        logger.info('  %s left out: %s', name, reason)
    images = torch.randn(batch, 3, *size, device=device)
    inputs = {}
    for name, model in models.items():
        layout = layout_of(name, args)
        model.train(mode == 'train')
        model.to(device, memory_format=layout)
        inputs[name] = images.contiguous(memory_format=layout)
    calls = make_calls(models, inputs, mode, ways)
    # A round runs each way.
    times = measure.interleave(calls, device, args.seconds * len(ways), args.min_rounds)
    rows = []
    for (name, (precision, run)), samples in times.items():
        row = dict(model=name, height=size[0], width=size[1], **where, precision=precision, run=run)
        row |= measure.summarize(samples)
        sources = dict(vmamba='mmvmamba', authors='VMamba')
        row['source'] = sources.get(name.partition('-')[0], args.peers)
        seconds = row['median_ms'] / 1e3
        row['images_per_s'] = round(batch / seconds, 3)
        row['ns_per_pixel'] = round(seconds * 1e9 / (batch * size[0] * size[1]), 3)
        if not args.no_memory and mode != 'deployed':
            extra = measure.extra_memory(calls[name, (precision, run)], device)
            weights = measure.model_bytes(models[name])
            row['extra_mib'] = round(extra / MIB, 2)
            row['peak_mib'] = round((extra + weights) / MIB, 2)
        rows.append(row)
    for way in ways:
        part = [row for row in rows if (row['precision'], row['run']) == way]
        for baseline in BASELINES:
            common.add_ratios(part, 'model', baseline, f'over {baseline}')
    if mode == 'deployed':
        for name in models:
            part = [row for row in rows if row['model'] == name]
            common.add_ratios(part, 'run', 'eager', 'over eager')
    return rows


# ---- summary -------------------------------------------------------------------------------------


def _setting(row: Mapping) -> str:
    return f'{row["size"]}, batch {row["batch"]}, {row["mode"]}, {row["precision"]}, {row["run"]}'


def core_shares(rows: Sequence[Row]) -> list[str]:
    """The core's share of the time, wherever a model ran with and without its core."""
    times = {(row['model'], _setting(row)): row['median_ms'] for row in rows}
    lines = []
    for (model, setting), full in times.items():
        rest = times.get((f'{model}-nocore', setting))
        if rest is not None:
            lines.append(f'core share of {model} at {setting}: {100 * (1 - rest / full):.1f} %')
    return lines


def gains(rows: Sequence[Row], key: str, slow: str, fast: str) -> list[str]:
    """How much faster a model is with one value of a setting than with another."""
    names = [name for name in ('model', 'size', 'batch', 'mode', 'precision', 'run') if name != key]
    times = {(row[key], *(row[name] for name in names)): row['median_ms'] for row in rows}
    lines = []
    for (value, *where), time in times.items():
        base = times.get((slow, *where))
        if value == fast and base is not None:
            text = ', '.join(map(str, where))
            lines.append(f'{fast} over {slow}, {text}: {base / time:.2f} x faster')
    return lines


def pixel_times(rows: Sequence[Row]) -> list[str]:
    """Time per pixel of the largest size over that of the smaller ones."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ('model', 'batch', 'mode', 'precision', 'run'))
        groups.setdefault(key, []).append(row)
    lines = []
    for key, group in groups.items():
        *smaller, largest = sorted(group, key=lambda row: row['height'] * row['width'])
        for row in smaller:
            ratio = largest['ns_per_pixel'] / row['ns_per_pixel']
            text = ', '.join(map(str, key))
            lines.append(
                f'time per pixel of {text}: {largest["size"]} over {row["size"]}: {ratio:.3f}'
            )
    return lines


def profile_shares(device: torch.device, seconds: float) -> list[str]:
    """Shares of the core and of the other operators in the forward of VMamba-T on a CPU."""
    lines = []
    for side in (224, 768):
        model = build_vmamba('t').eval()
        images = torch.randn(1, 3, side, side)
        forward = measure.make_call(model, images, train=False, amp=False)
        rest = rest_share(profile_passes(forward, device, 10))
        infer, train = core_calls(model, images)
        calls = {'forward': forward, 'core': infer, 'core with backward': train}
        times = measure.interleave(calls, device, seconds)
        full, core, both = (statistics.median(times[name]) for name in calls)
        lines.append(
            f'vmamba-t at {side}: no product or convolution (and SiLU) {100 * rest:.1f} %, core '
            f'{100 * core / full:.1f} %, core with backward over its forward {both / core:.2f}'
        )
    return lines


def core_calls(model: nn.Module, images: torch.Tensor) -> tuple[Call, Call]:
    """The cores of all blocks of a forward, each on its own input: forward, and with backward."""
    cores: list[tuple[SS2D, torch.Tensor]] = []
    modules = [module for module in model.modules() if isinstance(module, SS2D)]
    for module in modules:

        def record(x: torch.Tensor, scan: str, module: SS2D = module) -> torch.Tensor:
            cores.append((module, x))
            return SS2D.core(module, x, scan)

        module.core = record  # type: ignore[method-assign]
    with torch.no_grad():
        model(images)
    for module in modules:
        del module.core
    inputs = [(module, x.clone().requires_grad_()) for module, x in cores]
    seeds = [torch.randn_like(x) for _, x in cores]

    def infer() -> None:
        with torch.no_grad():
            for module, x in cores:
                module.core(x, module.scan)

    def train() -> None:
        for (module, x), seed in zip(inputs, seeds, strict=True):
            module.core(x, module.scan).backward(seed)
            x.grad = None
        model.zero_grad()

    return infer, train


# ---- command -------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``--quick`` sets the options that were not given."""
    parser = common.base_parser(__doc__.split('\n\n')[0], seconds=10)
    add = parser.add_argument
    names = model_names()
    add('--models', nargs='+', choices=names, metavar='MODEL', help=f'models: {", ".join(names)}')
    add('--sizes', nargs='+', type=measure.parse_size, help='image sizes, such as 224 800x1333')
    add('--batch-sizes', nargs='+', type=int, help='batch sizes')
    add('--modes', nargs='+', choices=('inference', 'train'))
    add('--precisions', nargs='+', choices=('fp32', 'amp'))
    add('--runs', nargs='+', choices=('eager', 'compiled', 'frozen'))
    add(
        '--peers',
        choices=PEERS,
        help='package of the compared models (default: the first one installed)',
    )
    add(
        '--channels-last',
        action='store_true',
        help="use channels-last memory for weights and images, except in the authors' code",
    )
    add(
        '--tf32',
        action='store_true',
        help='use TF32 for float32 products and convolutions on a GPU',
    )
    add(
        '--cpu',
        action='store_true',
        help='run the CPU settings of docs/benchmarks.md, including INT8 and ONNX Runtime',
    )
    add('--no-memory', action='store_true', help='do not measure memory, which saves one run each')
    args = parser.parse_args(argv)
    given = (args.sizes, args.batch_sizes, args.modes, args.precisions, args.runs)
    if args.cpu and (args.device != 'cpu' or any(value is not None for value in given)):
        parser.error('--cpu has its own settings, and runs on a CPU')
    quick = dict(
        models=['vmamba-t', 'vmamba-t-nocore', 'swin-t'],
        sizes=[(224, 224), (384, 384)],
        batch_sizes=[1],
        modes=['inference', 'train'],
        precisions=['fp32'],
        runs=['eager'],
    )
    full = dict(
        models=[
            f'{family}-{scale}'
            for family, scale in itertools.product(('vmamba', 'swin', 'convnext', 'deit'), SCALES)
            if (family, scale) != ('deit', 't')
        ],
        sizes=[(side, side) for side in (224, 384, 512, 768, 1024)],
        batch_sizes=[1],
        modes=['inference', 'train'],
        precisions=['fp32', 'amp'],
        runs=['eager', 'compiled'],
    )
    cpu = full | dict(models=['vmamba-t', *BASELINES])
    for name, value in (cpu if args.cpu else quick if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.quick:
        args.seconds = min(args.seconds, 5)
    args.peers = args.peers or find_peers()
    return args


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in float32 products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def run(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """All comparisons of the command line, each with its table."""
    rows = []
    settings = (
        CPU_SETTINGS
        if args.cpu
        else itertools.product(
            args.sizes,
            args.batch_sizes,
            args.modes,
            itertools.product(args.precisions, args.runs),
        )
    )
    for setting in settings:
        _, _, mode, *ways = setting
        if mode == 'train' and any(run == 'frozen' for _, run in ways):
            continue
        if mode == 'deployed' and (missing := [name for name in EXPORTERS if import_error(name)]):
            logger.info('mode deployed left out: no %s', ', '.join(missing))
            continue
        part = compare(args, device, *setting)
        common.write_table(part, COLUMNS)
        rows += part
    return rows


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and return its rows."""
    args = parse_args(argv)
    device = common.set_up(args)
    allow_tf32(args.tf32)
    # First, as exported models keep threads and memory.
    shares = profile_shares(device, args.seconds) if args.cpu else []
    rows = run(args, device)
    summary = core_shares(rows)
    for name in ('amp', 'int8'):
        summary += gains(rows, 'precision', 'fp32', name)
    for name in ('compiled', 'frozen', 'onnx', 'onnx-custom'):
        summary += gains(rows, 'run', 'eager', name)
    summary += pixel_times(rows) + shares
    common.finish(args, 'backbone', device, rows, summary)
    return rows


if __name__ == '__main__':
    sys.exit(not main())
