"""Runs of the training tool that can be killed, and their logs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

#: Settings common to all runs: short, random in data and model, every iteration logged as it is.
NO_VALIDATION = 'val_cfg = val_dataloader = val_evaluator = None\n'
COMMON = f"""
{NO_VALIDATION}optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
log_processor = dict(window_size=1, mean_pattern='^$')
randomness = dict(seed=7)
"""
DETECTION = COMMON + 'train_dataloader = dict(batch_size=1)\ntrain_cfg = dict(max_epochs=4)\n'
DETECTION += 'default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=2))\n'
SEGMENTATION = COMMON + 'train_cfg = dict(max_iters=14, val_interval=100)\n'
SEGMENTATION += """
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3, max_keep_ckpts=2))
"""


class FaultServer:
    """Process that forks a run for each :meth:`start`."""

    def __init__(self):
        env = dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name('fault_server.py'))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )
        assert self.process.stdout.readline() == '{}\n'

    def _ask(self, **job):
        self.process.stdin.write(json.dumps(job) + '\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, config, work_dir, *args, faults=None, env=None):
        """Start a training and return its process id."""
        work_dir.mkdir(parents=True, exist_ok=True)
        return self.start_tool(
            'train.py',
            *(config, '--work-dir', work_dir, *args),
            cwd=work_dir.parent,
            log=work_dir / 'output.txt',
            env=env,
            faults=faults,
        )

    def start_tool(self, name, *args, cwd, log, env=None, faults=None):
        """Start a tool and return its process id."""
        return self._ask(
            do='start',
            tool=name,
            args=[str(arg) for arg in args],
            cwd=str(cwd),
            log=str(log),
            env=env or {},
            faults=faults or {},
        )

    def wait(self, pid, timeout=120.0):
        """Return the exit status, a negative signal, or None if it still runs."""
        return self._ask(do='wait', pid=pid, timeout=timeout)

    def run(self, *args, **kwargs):
        """Run to the end and return the exit status."""
        pid = self.start(*args, **kwargs)
        status = self.wait(pid)
        if status is None:
            self.kill(pid)
        return status

    def kill(self, pid):
        """Kill a run and its data-loading processes."""
        os.killpg(pid, signal.SIGKILL)
        return self.wait(pid)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def entries(work_dir):
    """Return the entries that the runs in a folder logged, including killed ones."""
    for path in work_dir.glob('*/vis_data/scalars.json'):
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # the process was killed in the middle of the line


def losses(work_dir):
    """Return all logged numbers of each iteration except times, as exact text."""
    logged = {}
    for entry in entries(work_dir):
        if is_validation(entry):
            continue
        step = entry.pop('step')
        values = {k: repr(v) for k, v in entry.items() if k not in ('time', 'data_time', 'epoch')}
        assert 'loss' in values
        logged.setdefault(step, []).append(values)
    return logged


def is_validation(entry):
    return 'mIoU' in entry or 'coco/bbox_mAP' in entry


def validations(work_dir):
    """Return the steps of the complete validations."""
    return sorted(entry['step'] for entry in entries(work_dir) if is_validation(entry))


def assert_same_losses(work_dir, reference):
    """Compare each iteration logged in a folder with an uninterrupted run."""
    for step, entries in losses(work_dir).items():
        for values in entries:
            assert values == reference[step][0], (step, values, reference[step][0])


def assert_same_state(path, other):
    """Compare weights, averaged weights, optimizer and schedule of two checkpoints bit by bit."""
    first, second = (torch.load(p, weights_only=False) for p in (path, other))
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(first.get(key), second.get(key), key)


def assert_equal(a, b, where):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f'{where}[{i}]')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def descendants(pid):
    """Return the children of a process, their children, and so on."""
    try:
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except FileNotFoundError:  # it has ended
        return []
    return [d for child in map(int, children) for d in (child, *descendants(child))]


def output(work_dir):
    return (work_dir / 'output.txt').read_text()


def last_checkpoint(work_dir):
    return Path((work_dir / 'last_checkpoint').read_text())
