"""Train and test two small VMamba models on the demo data.

A Mask R-CNN and a UperNet learn from random weights on 400 photographs of 160 x 160 pixels, in
about 14 minutes on two CPU cores. WORK_DIR then has::

    results.json                          metrics, times and versions
    detection/*.png, contact_sheet.jpg    ground truth beside predictions; likewise segmentation/
    detection/train/, detection/test/     checkpoint and MMEngine's logs; likewise segmentation/

``--skip-training`` tests the models of an earlier run. The data are made only if ``data/demo`` does
not exist.

Example:
    python demo/run_demo.py --work-dir work_dirs/demo
"""

import argparse
import collections
import itertools
import json
import os
import re
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from draw_predictions import draw_predictions
from mmengine.config import Config

from mmvmamba import info
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.work_dir import last_checkpoint
from mmvmamba.ops import extension_error
from mmvmamba.ops.backend import AUTO_ORDER, why_not
from mmvmamba.registry import MODELS

REPO = Path(__file__).resolve().parent.parent
#: The lines of a tool's output that are shown; all of them go to a log file.
PROGRESS = re.compile(
    r'\b(Epoch|Iter)\((train|val|test)\)|^[|+].*[|+]$|\d+ of \d+ images|^(Data|Schedule|Finished) '
)
LOG_PREFIX = re.compile(r'^.*? - mmengine - \w+ - ')


class Metric(NamedTuple):
    """A metric's key in MMEngine's results, its unit there, and its target."""

    key: str
    unit: float
    target: float


class Task(NamedTuple):
    """Model to train, its config and its metrics."""

    name: str
    model: str
    config: str
    metrics: dict[str, Metric]


TASKS = (
    Task(
        'detection',
        'Mask R-CNN',
        'configs/demo/mask-rcnn_vmamba-demo_fpn_demo.py',
        {'box AP': Metric('coco/bbox_mAP', 1, 0.50), 'mask AP': Metric('coco/segm_mAP', 1, 0.45)},
    ),
    Task(
        'segmentation',
        'UperNet',
        'configs/demo/vmamba-demo_upernet_demo-160x160.py',
        {'mIoU': Metric('mIoU', 0.01, 0.70)},
    ),
)
NUM_STEPS = 2 + 3 * len(TASKS)  # data; training, test and drawing of each task; comparison
steps = itertools.count(1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train and test two small VMamba models on the demo data.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for the results')
    parser.add_argument(
        '--skip-training', action='store_true', help='test the models of an earlier run'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    work_dir = Path(args.work_dir).resolve()
    os.chdir(REPO)  # the configs name the data by a relative path
    device, backend = choose_device()
    step(f'making the demo data; everything runs on the {device}')
    if Path('data/demo').exists():
        show('data/demo exists and is used')
    else:
        script = 'tools/dataset_converters/make_demo_dataset.py'
        run_tool([script, 'data/demo'], work_dir / 'data.log', device)
    results: dict[str, Any] = {
        task.name: run_task(task, work_dir / task.name, device, backend, args.skip_training)
        for task in TASKS
    }
    step('comparing the metrics with their targets')
    misses = compare(results)
    seconds = round(time.perf_counter() - start, 1)
    results.update(seconds=seconds, device=device, backend=backend, passed=not misses)
    results.update(versions=info.versions(), machine=info.machine())
    (work_dir / 'results.json').write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
    show(f'{seconds / 60:.1f} minutes in total; results and images: {work_dir}')
    show('`make web` opens a page to try the models on your own images')
    if misses:
        raise UserError('the demo did not reach its targets: ' + '; '.join(misses))


def choose_device() -> tuple[str, str]:
    """Return the device and the backend of the scans: a GPU if it has kernels, else a CPU."""
    devices = ('cuda', 'cpu') if torch.cuda.is_available() else ('cpu',)
    for device in devices:
        for backend in AUTO_ORDER[device]:
            if why_not(backend, 'ss2d_scan', torch.device(device)) is None:
                return device, backend
    show(
        f'the kernels are missing ({extension_error()}); the PyTorch implementation takes much '
        'longer'
    )
    return devices[0], 'auto'


def run_task(
    task: Task, folder: Path, device: str, backend: str, skip_training: bool
) -> dict[str, Any]:
    """Train and test one model and draw its predictions; return its part of the results."""
    cfg = Config.fromfile(task.config)
    parameters = sum(p.numel() for p in MODELS.build(cfg.model.backbone).parameters())
    results = dict(model=task.model, config=task.config, backbone_parameters=parameters)
    options = ['--cfg-options', f'model.backbone.backend={backend}']
    step(f'training {task.model} with a VMamba of {parameters:,} parameters')
    train_dir = folder / 'train'
    if skip_training:
        show('skipped')
    else:
        command = ['tools/train.py', task.config, '--work-dir', str(train_dir), '--no-validate']
        results['train_seconds'] = run_tool([*command, *options], folder / 'train.log', device)
    results['checkpoint'] = last_checkpoint(str(train_dir))
    step(f'testing {task.model}')
    command = ['tools/test.py', task.config, results['checkpoint'], '--work-dir']
    command += [str(folder / 'test'), *options]
    results['test_seconds'] = run_tool(command, folder / 'test.log', device)
    results['metrics'] = read_metrics(task, folder / 'test')
    step(f'drawing predictions of {task.model} beside the ground truth')
    with (
        (folder / 'draw.log').open('w', encoding='utf-8') as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        draw_predictions(cfg, results['checkpoint'], folder, device)
    show(f'the images are in {folder}')
    return results


def run_tool(command: list[str], log: Path, device: str) -> float:
    """Run a script of the repository, log its output, show its progress and return its seconds."""
    show('$ python ' + ' '.join(command))
    start = time.perf_counter()
    env = dict(os.environ, PYTHONUNBUFFERED='1')
    # OpenMP threads that wait for a busy core must not keep the other core busy for long.
    env.setdefault('GOMP_SPINCOUNT', '10000')
    if device == 'cpu':
        env['CUDA_VISIBLE_DEVICES'] = ''
    tail: collections.deque[str] = collections.deque(maxlen=25)
    log.parent.mkdir(parents=True, exist_ok=True)
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8')
    with (
        log.open('w', encoding='utf-8') as file,
        subprocess.Popen([sys.executable, *command], env=env, **output) as process,
    ):
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            if PROGRESS.search(line):
                show(LOG_PREFIX.sub('', line).rstrip())
    if process.returncode:
        raise UserError(
            f'{command[0]} failed with exit status {process.returncode}; its output is in {log} '
            f'and ends with:\n{"".join(tail)}'
        )
    return round(time.perf_counter() - start, 1)


def read_metrics(task: Task, folder: Path) -> dict[str, float]:
    """Read the metrics of the newest run in a folder; MMEngine names them by date and time."""
    content = json.loads(max(folder.glob('*/*.json')).read_text(encoding='utf-8'))
    return {name: round(content[m.key] * m.unit, 4) for name, m in task.metrics.items()}


def compare(results: dict[str, Any]) -> list[str]:
    """Show each metric with its target; return a sentence for each that is below."""
    misses = []
    for task in TASKS:
        for name, metric in task.metrics.items():
            value = results[task.name]['metrics'][name]
            show(f'{task.model:<12} {name:<8} {value:.3f} (target {metric.target:.2f})')
            if not value >= metric.target:  # a NaN is a miss too
                misses.append(f'{name} of {task.model} is {value:.3f}, below {metric.target:.2f}')
    return misses


def step(text: str) -> None:
    print(f'[{next(steps)}/{NUM_STEPS}] {text}', flush=True)


def show(text: str) -> None:
    print(f'    {text}', flush=True)


if __name__ == '__main__':
    errors.run(main)
