"""The demo: trains and tests two small VMamba models on the demo data.

A Mask R-CNN and a UperNet learn from random weights on 400 photographs of 160 x 160 pixels, in
about ten minutes on two CPU cores. What is in WORK_DIR afterwards::

    results.json                          the figures, times and versions
    detection/*.png, contact_sheet.jpg    ground truth beside predictions; so for segmentation/
    detection/train/, detection/test/     checkpoint and MMEngine's logs; so for segmentation/

A second run uses the data and the trained models again; ``--force`` trains anew.

Example:
    python demo/run_demo.py --work-dir work_dirs/demo
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
# What is shown of a tool's output; all of it goes to a log file.
PROGRESS = re.compile(
    r'\b(Epoch|Iter)\((train|val|test)\)|^[|+].*[|+]$|\d+ of \d+ images|is complete'
)
LOG_PREFIX = re.compile(r'^.*? - mmengine - \w+ - ')
TAIL_LINES = 25
DISTRIBUTIONS = ('mmengine', 'mmcv', 'mmdet', 'mmseg')


class DemoError(Exception):
    """The demo cannot go on, or did not reach its targets; told in a sentence."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure to reach: its key in MMEngine's results, the unit there, and the target."""

    key: str
    unit: float
    target: float


@dataclasses.dataclass(frozen=True)
class Task:
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


class OpRecorder(TorchDispatchMode):
    """Counts the ops that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """Counts the op and runs it."""
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def choose_device() -> str:
    """The GPU where there is one with native kernels, else the CPU.

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
            f'the native op {NATIVE_OP} is not there: {reason}. The demo needs it; with a C++ '
            'compiler (gcc 9 or newer), `make setup` or `pip install --no-build-isolation -e .` '
            'builds it'
        )
    return 'cpu'


def check_backbone(backbone: torch.nn.Module, device: str) -> int:
    """Checks that a backbone has four stages, its size, and that it runs on the native op.

    Args:
        backbone (nn.Module): The backbone.
        device (str): 'cpu' or 'cuda'.

    Returns:
        int: Its number of parameters.

    Raises:
        DemoError: If one of this does not hold.
    """
    backbone = backbone.to(device).train()
    with OpRecorder() as recorder:
        maps = backbone(torch.randn(2, 3, 64, 64, device=device))
    sum(m.square().mean() for m in maps).backward()
    strides = [64 // m.shape[-1] for m in maps]
    if len(backbone.layers) != NUM_STAGES or strides != [4, 8, 16, 32]:
        raise DemoError(f'the backbone must have {NUM_STAGES} stages, but has strides {strides}')
    number = sum(p.numel() for p in backbone.parameters())
    if number < MIN_PARAMETERS:
        raise DemoError(f'the backbone must have {MIN_PARAMETERS:,} parameters, but has {number:,}')
    if recorder.counts[NATIVE_OP] < NUM_STAGES:
        raise DemoError(f'the backbone did not run on the native op {NATIVE_OP}')
    if not all(p.grad is None or p.grad.isfinite().all() for p in backbone.parameters()):
        raise DemoError('the gradients of the backbone are not finite')
    return number


def check_backbones(device: str) -> dict[str, int]:
    """Checks the backbone of each task's config; returns their numbers of parameters."""
    numbers = {}
    for task in TASKS:
        cfg = Config.fromfile(REPO / task.config)
        backbone = MODELS.build(dict(cfg.model.backbone, backend='native'))
        numbers[task.name] = check_backbone(backbone, device)
        logger.info(
            '    %s: VMamba with %d stages, %s parameters, native op %s on %s',
            task.model,
            NUM_STAGES,
            f'{numbers[task.name]:,}',
            NATIVE_OP,
            device,
        )
    return numbers


# ---- the tools -----------------------------------------------------------------------------------


@contextlib.contextmanager
def measure(times: dict[str, float]) -> Iterator[None]:
    """Notes the seconds, and the CPU seconds of this and of finished child processes."""

    def cpu_seconds() -> float:
        now = os.times()
        return now.user + now.system + now.children_user + now.children_system

    start, cpu_start = time.perf_counter(), cpu_seconds()
    yield
    times['seconds'] = round(time.perf_counter() - start, 1)
    times['cpu_seconds'] = round(cpu_seconds() - cpu_start, 1)


def run_tool(arguments: Sequence[str], log: Path, device: str) -> None:
    """Runs one of the repository's commands and shows its progress.

    Args:
        arguments (Sequence[str]): Script and arguments, as from the repository's folder.
        log (Path): File for all of the output.
        device (str): 'cpu' hides the GPU from the command.

    Raises:
        DemoError: If the command fails, with the end of its output.
    """
    logger.info('    $ python %s', ' '.join(arguments))
    env = dict(os.environ, PYTHONUNBUFFERED='1')
    # Threads of OpenMP that wait for a core that is taken do not keep the other busy for long.
    env.setdefault('GOMP_SPINCOUNT', '10000')
    if device == 'cpu':
        env['CUDA_VISIBLE_DEVICES'] = ''
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open('w', encoding='utf-8') as file,
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=REPO,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding='utf-8',
            errors='replace',
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            if PROGRESS.search(line):
                logger.info('    %s', LOG_PREFIX.sub('', line).rstrip())
    if process.returncode:
        raise DemoError(
            f'{arguments[0]} failed with exit status {process.returncode}; all of its output is '
            f'in {log}, which ends so:\n{"".join(tail)}'
        )


def data_options(task: Task, data_root: Path) -> list[str]:
    """``--cfg-options`` for data that is elsewhere than the config says."""
    if data_root == DATA_ROOT:
        return []
    options = [f'{split}_dataloader.dataset.data_root={data_root}' for split in ('train', 'test')]
    if task.name == 'detection':
        options.append(f'test_evaluator.ann_file={data_root}/annotations/instances_val.json')
    return options


def make_data(data_root: Path, log: Path) -> None:
    """Makes the demo data, or uses what is there."""
    script = 'tools/dataset_converters/make_demo_dataset.py'
    run_tool([script, display_path(data_root)], log, 'cpu')


def display_path(path: Path) -> str:
    """A path as from the repository's folder, where it is inside."""
    return str(path.relative_to(REPO)) if path.is_relative_to(REPO) else str(path)


# ---- training and testing ------------------------------------------------------------------------


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_digest(repo: Path = REPO) -> str:
    """SHA-256 of what trains: the package, its kernels and the tool."""
    files = [*(repo / 'mmvmamba').rglob('*.py'), *(repo / 'csrc').rglob('*')]
    files += [repo / 'setup.py', repo / 'tools/train.py']
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(repo)
        # .mim holds links to configs and tools, which installing makes.
        if path.is_file() and '.mim' not in name.parts:
            digest.update(f'{name.as_posix()} {file_digest(path)}\n'.encode())
    return digest.hexdigest()


def training_key(task: Task, data_root: Path) -> str:
    """What a trained model depends on, as a digest: the config, the data and the code."""
    cfg = Config.fromfile(REPO / task.config).to_dict()
    manifest = (data_root / 'manifest.json').read_text(encoding='utf-8')
    content = [cfg, manifest, source_digest()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one if there is no such file or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in one step."""
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    part.replace(path)


def finished_training(folder: Path, key: str) -> dict[str, Any] | None:
    """The record of a finished training with this key whose checkpoint is whole, or None."""
    record = read_json(folder / 'finished.json')
    checkpoint = folder / str(record.get('checkpoint'))
    if record.get('key') != key or not checkpoint.is_file():
        return None
    return record if file_digest(checkpoint) == record.get('sha256') else None


def train(task: Task, folder: Path, data_root: Path, device: str, force: bool) -> dict[str, Any]:
    """Trains a task's model, or uses the one that an earlier run has trained.

    Returns:
        dict: The record of the training: checkpoint, seconds, cpu_seconds, reused.
    """
    key = training_key(task, data_root)
    record = None if force else finished_training(folder, key)
    if record:
        path = display_path(folder / record['checkpoint'])
        logger.info('    %s is complete and is used again (--force trains anew)', path)
        return dict(record, reused=True)
    (folder / 'finished.json').unlink(missing_ok=True)
    arguments = ['tools/train.py', task.config, '--work-dir', display_path(folder)]
    arguments += ['--no-validate', '--cfg-options', 'model.backbone.backend=native']
    record = {'key': key}
    with measure(record):
        run_tool(arguments + data_options(task, data_root), folder / 'output.log', device)
    checkpoint = Path((folder / 'last_checkpoint').read_text(encoding='utf-8').strip()).name
    record.update(checkpoint=checkpoint, sha256=file_digest(folder / checkpoint))
    write_json(folder / 'finished.json', record)
    return dict(record, reused=False)


def test(
    task: Task, checkpoint: Path, folder: Path, data_root: Path, device: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Tests a task's model; returns the figures by name, and the times."""
    before = set(folder.glob('*/*.json'))
    arguments = ['tools/test.py', task.config, display_path(checkpoint)]
    arguments += ['--work-dir', display_path(folder)]
    arguments += ['--cfg-options', 'model.backbone.backend=native']
    times: dict[str, float] = {}
    with measure(times):
        run_tool(arguments + data_options(task, data_root), folder / 'output.log', device)
    return read_figures(task, sorted(set(folder.glob('*/*.json')) - before)), times


def read_figures(task: Task, files: Sequence[Path]) -> dict[str, float]:
    """Reads a task's figures from the JSON file that MMEngine's logger hook leaves.

    Raises:
        DemoError: If there is no file with all of them.
    """
    for path in files:
        content = read_json(path)
        if all(metric.key in content for metric in task.metrics.values()):
            return {
                name: round(content[metric.key] * metric.unit, 4)
                for name, metric in task.metrics.items()
            }
    raise DemoError(f'the test of {task.model} left no figures of {sorted(task.metrics)}')


def run_task(
    task: Task, work_dir: Path, data_root: Path, device: str, args: argparse.Namespace, step: Step
) -> dict[str, Any]:
    """Trains and tests one model and draws its predictions; returns its part of the results."""
    folder = work_dir / task.name
    step(f'training {task.model} ({task.name})')
    record = train(task, folder / 'train', data_root, device, args.force)
    checkpoint = folder / 'train' / record['checkpoint']
    step(f'testing {task.model}')
    figures, test_times = test(task, checkpoint, folder / 'test', data_root, device)
    logger.info('    %s', ', '.join(f'{name} {value:.3f}' for name, value in figures.items()))
    step(f'drawing predictions of {task.model} beside the ground truth')
    arguments = ['demo/draw_predictions.py', task.config]
    arguments += [display_path(checkpoint), display_path(folder)]
    options = data_options(task, data_root)
    arguments += ['--cfg-options', *options] if options else []
    draw_times: dict[str, float] = {}
    with measure(draw_times):
        run_tool(arguments, folder / 'draw.log', device)
    train_times = {name: record[name] for name in ('seconds', 'cpu_seconds', 'reused')}
    return dict(
        model=task.model,
        config=task.config,
        checkpoint=display_path(checkpoint),
        figures=figures,
        train=train_times,
        test=test_times,
        draw=draw_times,
    )


# ---- the results ---------------------------------------------------------------------------------


class Step:
    """Announces numbered steps."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0

    def __call__(self, text: str) -> None:
        """Announces the next step."""
        self.number += 1
        logger.info('[%d/%d] %s', self.number, self.total, text)


def find_misses(results: dict[str, Any]) -> list[str]:
    """Sentences for the figures below their targets."""
    misses = []
    for task in TASKS:
        for name, metric in task.metrics.items():
            value = results[task.name]['figures'][name]
            # A NaN is a miss too.
            if not value >= metric.target:
                misses.append(f'{name} of {task.model} is {value:.3f}, below {metric.target:.2f}')
    return misses


def summarise(results: dict[str, Any]) -> list[str]:
    """The results as lines of text."""
    lines = []
    for task in TASKS:
        part = results[task.name]
        for name, metric in task.metrics.items():
            figures = f'{part["figures"][name]:.3f} (target {metric.target:.2f})'
            lines.append(f'{task.model:<12} {name:<8} {figures}')
        reused = ' (in an earlier run)' if part['train']['reused'] else ''
        train, tested = part['train']['seconds'], part['test']['seconds']
        lines.append(f'{task.model:<12} trained in {train:.0f} s{reused}, tested in {tested:.0f} s')
    return lines


def find_versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    found = {'python': platform.python_version(), 'torch': torch.__version__}
    found['mmvmamba'] = mmvmamba.__version__
    distributions = importlib.metadata.packages_distributions()
    for package in DISTRIBUTIONS:
        for name in distributions.get(package, [])[:1]:
            found[name] = importlib.metadata.version(name)
    return found


def run_demo(args: argparse.Namespace) -> None:
    """Runs all steps.

    Raises:
        DemoError: If a step fails or a figure is below its target.
    """
    work_dir = Path(args.work_dir).resolve()
    data_root = Path(args.data_root).resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    step = Step(3 + 3 * len(TASKS))
    results: dict[str, Any] = {}
    total: dict[str, float] = {}
    with measure(total):
        step('checking the backbones and the native op')
        device = choose_device()
        parameters = check_backbones(device)
        step('making the demo data')
        make_data(data_root, work_dir / 'data.log')
        for task in TASKS:
            results[task.name] = run_task(task, work_dir, data_root, device, args, step)
            results[task.name]['backbone_parameters'] = parameters[task.name]
    step('comparing the figures with their targets')
    misses = find_misses(results)
    results.update(total, device=device, threads=torch.get_num_threads())
    results.update(passed=not misses, versions=find_versions())
    write_json(work_dir / 'results.json', results)
    for line in summarise(results):
        logger.info('    %s', line)
    logger.info(
        '    %.1f minutes in all; results and pictures: %s', total['seconds'] / 60, work_dir
    )
    if misses:
        raise DemoError('the demo did not reach its targets: ' + '; '.join(misses))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description='Train and test two small VMamba models on the demo data.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for the results')
    parser.add_argument('--data-root', default=DATA_ROOT, help='folder of the demo data')
    parser.add_argument('--force', action='store_true', help='train again what is trained')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; what goes wrong is told on stderr, with exit status 1."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stdout)
    logger.setLevel(logging.INFO)
    args = parse_args(argv)
    register_config_packages()
    try:
        run_demo(args)
    except (DemoError, OSError) as error:
        logger.error('error: %s', error)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
