"""Train and test two small VMamba models on the demo data.

A Mask R-CNN and a UperNet learn from random weights on 400 photographs of 160 x 160 pixels, in
about ten minutes on two CPU cores. WORK_DIR then has::

    results.json                          metrics, times and versions
    detection/*.png, contact_sheet.jpg    ground truth beside predictions; likewise segmentation/
    detection/train/, detection/test/     checkpoint and MMEngine's logs; likewise segmentation/

A second run reuses the data and the trained models; ``--force`` trains them again.

Example:
    python demo/run_demo.py --work-dir work_dirs/demo
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch.utils._python_dispatch import TorchDispatchMode

import mmvmamba
from mmvmamba.ops import has_kernel, load_extension
from mmvmamba.registry import MODELS, register_config_packages

logger = logging.getLogger('run_demo')

REPO = Path(__file__).resolve().parent.parent
DATA_ROOT = REPO / 'data' / 'demo'
NUM_STAGES = 4
MIN_PARAMETERS = 1_000_000
NATIVE_OP = 'mmvmamba::ss2d_scan'
# The lines of a tool's output that are shown; all of them go to a log file.
PROGRESS = re.compile(
    r'\b(Epoch|Iter)\((train|val|test)\)|^[|+].*[|+]$|\d+ of \d+ images|is complete'
)
LOG_PREFIX = re.compile(r'^.*? - mmengine - \w+ - ')
TAIL_LINES = 25
PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg')

Step = Callable[[str], None]


class DemoError(Exception):
    """A step failed, or the demo did not reach its targets."""


class Metric(NamedTuple):
    """A metric's key in MMEngine's results, its unit there, and its target."""

    key: str
    unit: float
    target: float


class Task(NamedTuple):
    """A model that the demo trains."""

    name: str
    model: str
    config: str
    metrics: dict[str, Metric]


TASKS = (
    Task(
        'detection',
        'Mask R-CNN',
        'configs/demo/mask-rcnn_vmamba-demo_fpn_demo.py',
        {
            'box AP': Metric('coco/bbox_mAP', 1.0, 0.50),
            'mask AP': Metric('coco/segm_mAP', 1.0, 0.45),
        },
    ),
    Task(
        'segmentation',
        'UperNet',
        'configs/demo/vmamba-demo_upernet_demo-160x160.py',
        {'mIoU': Metric('mIoU', 0.01, 0.70)},
    ),
)


# ---- the backbone --------------------------------------------------------------------------------


class OpCounter(TorchDispatchMode):
    """Count the ops that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """Count the op and run it."""
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def choose_device() -> str:
    """Return the GPU if there is one with native kernels, else the CPU.

    Raises:
        DemoError: If there are no native kernels for the CPU either.
    """
    if torch.cuda.is_available():
        if has_kernel('ss2d_scan', 'cuda'):
            return 'cuda'
        logger.info('    the extension has no CUDA kernels: the demo runs on the CPU')
    if not has_kernel('ss2d_scan', 'cpu'):
        reason = load_extension() or 'the extension has no CPU kernels'
        raise DemoError(
            f'the demo needs the native op {NATIVE_OP}: {reason}. Build it with a C++ compiler '
            '(gcc 9 or newer) and `make setup` or `pip install --no-build-isolation -e .`'
        )
    return 'cpu'


def check_backbone(backbone: torch.nn.Module, device: str) -> int:
    """Check a backbone's stages, size, gradients and use of the native op; return its size.

    Raises:
        DemoError: If one of the checks fails.
    """
    backbone = backbone.to(device).train()
    with OpCounter() as ops:
        maps = backbone(torch.randn(2, 3, 64, 64, device=device))
    sum(m.square().mean() for m in maps).backward()
    strides = [64 // m.shape[-1] for m in maps]
    if len(backbone.layers) != NUM_STAGES or strides != [4, 8, 16, 32]:
        raise DemoError(f'the backbone must have {NUM_STAGES} stages, but has strides {strides}')
    number = sum(p.numel() for p in backbone.parameters())
    if number < MIN_PARAMETERS:
        raise DemoError(f'the backbone must have {MIN_PARAMETERS:,} parameters, but has {number:,}')
    if ops.counts[NATIVE_OP] < NUM_STAGES:
        raise DemoError(f'the backbone did not run on the native op {NATIVE_OP}')
    if not all(p.grad is None or p.grad.isfinite().all() for p in backbone.parameters()):
        raise DemoError('the gradients of the backbone are not finite')
    return number


# ---- the tools -----------------------------------------------------------------------------------


@contextlib.contextmanager
def measure() -> Iterator[dict[str, float]]:
    """Measure the seconds, and the CPU seconds of this and of finished child processes."""
    times: dict[str, float] = {}
    start, cpu_start = time.perf_counter(), sum(os.times()[:4])
    yield times
    times['seconds'] = round(time.perf_counter() - start, 1)
    times['cpu_seconds'] = round(sum(os.times()[:4]) - cpu_start, 1)


def run_tool(arguments: Sequence[str], log: Path, device: str) -> None:
    """Run one of the repository's scripts, log its output and show its progress.

    Raises:
        DemoError: If the script fails, with the end of its output.
    """
    logger.info('    $ python %s', ' '.join(arguments))
    env = dict(os.environ, PYTHONUNBUFFERED='1')
    # OpenMP threads that wait for a busy core must not keep the other core busy for long.
    env.setdefault('GOMP_SPINCOUNT', '10000')
    if device == 'cpu':
        env['CUDA_VISIBLE_DEVICES'] = ''
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *arguments]
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8')
    with (
        log.open('w', encoding='utf-8') as file,
        subprocess.Popen(command, cwd=REPO, env=env, errors='replace', **output) as process,
    ):
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            if PROGRESS.search(line):
                logger.info('    %s', LOG_PREFIX.sub('', line).rstrip())
    if process.returncode:
        raise DemoError(
            f'{arguments[0]} failed with exit status {process.returncode}; its output is in {log} '
            f'and ends with:\n{"".join(tail)}'
        )


def data_options(task: Task, data_root: Path) -> list[str]:
    """Return ``--cfg-options`` for data outside the folder that the config names."""
    if data_root == DATA_ROOT:
        return []
    options = [f'{split}_dataloader.dataset.data_root={data_root}' for split in ('train', 'test')]
    if task.name == 'detection':
        options.append(f'test_evaluator.ann_file={data_root}/annotations/instances_val.json')
    return options


def display_path(path: Path) -> str:
    """Return a path relative to the repository if it is inside."""
    return str(path.relative_to(REPO)) if path.is_relative_to(REPO) else str(path)


# ---- training and testing ------------------------------------------------------------------------


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_digest(repo: Path = REPO) -> str:
    """Return the SHA-256 of the package, its kernels and the training tool."""
    files = [*(repo / 'mmvmamba').rglob('*.py'), *(repo / 'csrc').rglob('*')]
    files += [repo / 'setup.py', repo / 'tools/train.py']
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(repo)
        # Installing the package makes links to configs and tools in .mim.
        if path.is_file() and '.mim' not in name.parts:
            digest.update(f'{name.as_posix()} {file_digest(path)}\n'.encode())
    return digest.hexdigest()


def training_key(task: Task, data_root: Path) -> str:
    """Return the digest of what a trained model depends on: config, data and code."""
    cfg = Config.fromfile(REPO / task.config).to_dict()
    manifest = (data_root / 'manifest.json').read_text(encoding='utf-8')
    content = [cfg, manifest, source_digest()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file in one step."""
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    part.replace(path)


def finished_training(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the record of a finished training with this key and an intact checkpoint, if any."""
    path = folder / 'finished.json'
    record = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    if record.get('key') != key:
        return None
    checkpoint = folder / record['checkpoint']
    intact = checkpoint.is_file() and file_digest(checkpoint) == record['sha256']
    return record if intact else None


def train(task: Task, folder: Path, data_root: Path, device: str, force: bool) -> dict[str, Any]:
    """Train a task's model or reuse an earlier one.

    Returns:
        dict: The record of the training: checkpoint, seconds, cpu_seconds, reused.
    """
    key = training_key(task, data_root)
    record = None if force else finished_training(folder, key)
    if record:
        path = display_path(folder / record['checkpoint'])
        logger.info('    %s is complete and is reused (--force trains it again)', path)
        return dict(record, reused=True)
    (folder / 'finished.json').unlink(missing_ok=True)
    arguments = ['tools/train.py', task.config, '--work-dir', display_path(folder)]
    arguments += ['--no-validate', '--cfg-options', 'model.backbone.backend=native']
    with measure() as times:
        run_tool(arguments + data_options(task, data_root), folder / 'output.log', device)
    checkpoint = Path((folder / 'last_checkpoint').read_text(encoding='utf-8').strip()).name
    digest = file_digest(folder / checkpoint)
    record = dict(key=key, checkpoint=checkpoint, sha256=digest, **times)
    write_json(folder / 'finished.json', record)
    return dict(record, reused=False)


def test(
    task: Task, checkpoint: Path, folder: Path, data_root: Path, device: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Test a task's model; return the metrics by name, and the times."""
    before = set(folder.glob('*/*.json'))
    arguments = ['tools/test.py', task.config, display_path(checkpoint)]
    arguments += ['--work-dir', display_path(folder)]
    arguments += ['--cfg-options', 'model.backbone.backend=native']
    with measure() as times:
        run_tool(arguments + data_options(task, data_root), folder / 'output.log', device)
    return read_metrics(task, set(folder.glob('*/*.json')) - before), times


def read_metrics(task: Task, files: Iterable[Path]) -> dict[str, float]:
    """Read a task's metrics from the JSON file of MMEngine's logger hook.

    Raises:
        DemoError: If no file has all of them.
    """
    for path in files:
        content = json.loads(path.read_text(encoding='utf-8'))
        if all(metric.key in content for metric in task.metrics.values()):
            return {name: round(content[m.key] * m.unit, 4) for name, m in task.metrics.items()}
    raise DemoError(f'the test of {task.model} wrote no {" and ".join(task.metrics)}')


def run_task(
    task: Task,
    work_dir: Path,
    data_root: Path,
    device: str,
    force: bool,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """Train and test one model and draw its predictions; return its part of the results."""
    folder = work_dir / task.name
    step(f'training {task.model} ({task.name})')
    record = train(task, folder / 'train', data_root, device, force)
    checkpoint = folder / 'train' / record['checkpoint']
    step(f'testing {task.model}')
    metrics, test_times = test(task, checkpoint, folder / 'test', data_root, device)
    logger.info('    %s', ', '.join(f'{name} {value:.3f}' for name, value in metrics.items()))
    step(f'drawing predictions of {task.model} beside the ground truth')
    arguments = ['demo/draw_predictions.py', task.config]
    arguments += [display_path(checkpoint), display_path(folder)]
    options = data_options(task, data_root)
    arguments += ['--cfg-options', *options] if options else []
    with measure() as draw_times:
        run_tool(arguments, folder / 'draw.log', device)
    return dict(
        model=task.model,
        config=task.config,
        checkpoint=display_path(checkpoint),
        figures=metrics,
        train={name: record[name] for name in ('seconds', 'cpu_seconds', 'reused')},
        test=test_times,
        draw=draw_times,
    )


# ---- the results ---------------------------------------------------------------------------------


def find_misses(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each metric below its target."""
    misses = []
    for task in TASKS:
        for name, metric in task.metrics.items():
            value = results[task.name]['figures'][name]
            # A NaN is a miss too.
            if not value >= metric.target:
                misses.append(f'{name} of {task.model} is {value:.3f}, below {metric.target:.2f}')
    return misses


def summarise(results: dict[str, Any]) -> list[str]:
    """Return the results as lines of text."""
    lines = []
    for task in TASKS:
        part = results[task.name]
        for name, metric in task.metrics.items():
            value = f'{part["figures"][name]:.3f} (target {metric.target:.2f})'
            lines.append(f'{task.model:<12} {name:<8} {value}')
        reused = ' (in an earlier run)' if part['train']['reused'] else ''
        trained, tested = part['train']['seconds'], part['test']['seconds']
        lines.append(
            f'{task.model:<12} trained in {trained:.0f} s{reused}, tested in {tested:.0f} s'
        )
    return lines


def find_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages in use."""
    found = {'python': platform.python_version(), 'torch': torch.__version__}
    found['mmvmamba'] = mmvmamba.__version__
    distributions = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        for name in distributions.get(package, [])[:1]:
            found[name] = importlib.metadata.version(name)
    return found


# ---- all of it -----------------------------------------------------------------------------------


def run_demo(args: argparse.Namespace) -> None:
    """Run all steps.

    Raises:
        DemoError: If a step fails or a metric is below its target.
    """
    work_dir = Path(args.work_dir).resolve()
    data_root = Path(args.data_root).resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count(1)

    def step(text: str) -> None:
        logger.info('[%d/%d] %s', next(numbers), 3 + 3 * len(TASKS), text)

    results: dict[str, Any] = {}
    with measure() as total:
        step('checking the backbones and the native op')
        device = choose_device()
        parameters = {}
        for task in TASKS:
            cfg = Config.fromfile(REPO / task.config)
            backbone = MODELS.build(dict(cfg.model.backbone, backend='native'))
            parameters[task.name] = check_backbone(backbone, device)
            text = '    %s: VMamba with %d stages, %s parameters, native op %s on %s'
            size = f'{parameters[task.name]:,}'
            logger.info(text, task.model, NUM_STAGES, size, NATIVE_OP, device)
        step('making the demo data')
        script = 'tools/dataset_converters/make_demo_dataset.py'
        run_tool([script, display_path(data_root)], work_dir / 'data.log', 'cpu')
        for task in TASKS:
            results[task.name] = run_task(task, work_dir, data_root, device, args.force, step)
            results[task.name]['backbone_parameters'] = parameters[task.name]
    step('comparing the metrics with their targets')
    misses = find_misses(results)
    results.update(total, device=device, threads=torch.get_num_threads())
    results.update(passed=not misses, versions=find_versions())
    write_json(work_dir / 'results.json', results)
    for line in summarise(results):
        logger.info('    %s', line)
    minutes = total['seconds'] / 60
    logger.info('    %.1f minutes in total; results and pictures: %s', minutes, work_dir)
    if misses:
        raise DemoError('the demo did not reach its targets: ' + '; '.join(misses))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Train and test two small VMamba models on the demo data.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for the results')
    parser.add_argument('--data-root', default=DATA_ROOT, help='folder of the demo data')
    parser.add_argument('--force', action='store_true', help='train again, even a trained model')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; an error is a message on stderr and exit status 1."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stdout)
    logger.setLevel(logging.INFO)
    args = parse_args(argv)
    register_config_packages()
    try:
        run_demo(args)
    except (DemoError, OSError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
