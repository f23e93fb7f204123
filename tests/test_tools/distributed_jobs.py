"""Jobs of several processes on the CPU, for test_distributed.py.

``python distributed_jobs.py PLAN`` runs the jobs of a JSON file, each in as many processes as it
says, one job after another except for those that only wait. The packages are imported once:
processes are forks of this one. What a process returns is saved as ``FOLDER/RANK.pt``.
"""

import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

# Before mmcv, which may have no compiled ops.
import mmvmamba  # noqa: F401 # isort: skip
import mmdet.models  # noqa: F401
import mmpretrain.models  # noqa: F401
import mmseg.models  # noqa: F401
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS as DET_MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.structures import InstanceData, PixelData
from quick_runs import prepare_forks
from torch.utils.data import Dataset

from mmvmamba.engine import AverageBatchNormHook
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner import build_runner, distributed
from mmvmamba.engine.runner.distributed import cpu_model_wrapper, init_cpu_process_group
from mmvmamba.models import VMamba
from mmvmamba.nn.network import VSSBlock

TIMEOUT = 240
GLOO_TIMEOUT = 6
#: A job that makes this file in its folder does nothing but wait from then on.
BEGUN = 'begun'
THIN = dict(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path_rate=0.2)


def build(config, folder, world, **options):
    """Build the runner of tools/train.py and tools/test.py."""
    cfg = Config.fromfile(config)
    cfg.launcher = 'pytorch' if world > 1 else 'none'
    cfg.work_dir = str(Path(folder) / 'work_dir')
    cfg.merge_from_dict(options)
    return build_runner(cfg)


@HOOKS.register_module()
class KeepLosses(Hook):
    """Keep the initial weights and the losses of this process."""

    def __init__(self):
        self.losses, self.before = [], {}

    def before_train(self, runner):
        self.before = {k: v.clone() for k, v in runner.model.state_dict().items()}
        # How much was drawn so far is not the same in all runners.
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(runner.rank)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss']))


def train(config, folder, world, options):
    """Train; return the weights and buffers before and after, and the losses of this process."""
    runner = build(config, folder, world, custom_hooks=[dict(type='KeepLosses')], **options)
    runner.train()
    hook = next(h for h in runner.hooks if isinstance(h, KeepLosses))
    start = len('module.') if world > 1 else 0
    before = {name[start:]: value for name, value in hook.before.items()}
    state = {name[start:]: value for name, value in runner.model.state_dict().items()}
    if runner.rank == 0:
        torch.save({'state_dict': before}, f'{folder}/before.pth')
    return dict(before=before, state=state, losses=hook.losses)


def refused(config, folder, world, options):
    """Train until the tool refuses the config; return the message and the steps before it."""
    runner = build(config, folder, world, custom_hooks=[dict(type='KeepLosses')], **options)
    with pytest.raises(UserError) as caught:
        runner.train()
    hook = next(h for h in runner.hooks if isinstance(h, KeepLosses))
    return dict(said=str(caught.value), steps=len(hook.losses))


# ---- order of samples ----


@DATASETS.register_module()
class Photographs(Dataset):
    """Numbers with a random augmentation; every third one is an upright image."""

    metainfo = dict(classes=('a',))

    def __len__(self):
        return 22

    def get_data_info(self, index):
        return dict(width=3, height=4 if index % 3 == 0 else 2)

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([float(index), torch.rand(()).item()]))


@MODELS.register_module()
class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode):
        return dict(loss=self.layer(torch.stack(list(inputs))).square().mean())


@HOOKS.register_module()
class LogSamples(Hook):
    """Log and keep the sample ids of each iteration, with their augmentation."""

    def __init__(self):
        self.samples = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        found = [tuple(sample.tolist()) for sample in data_batch['inputs']]
        self.samples[runner.iter] = found
        runner.logger.error(f'iteration {runner.iter}: samples {[int(i) for i, _ in found]}')


@HOOKS.register_module()
class Misbehave(Hook):
    """Hang in one rank until the others have ended, be slow, or end."""

    def __init__(self, rank, kind, files, begun):
        self.rank, self.kind, self.files = rank, kind, [Path(file) for file in files]
        self.begun = Path(begun)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank != self.rank or runner.iter != 2:
            return
        self.begun.touch()
        if self.kind == 'hangs':
            while not all(file.exists() for file in self.files):
                time.sleep(0.1)
        elif self.kind == 'is slow':
            time.sleep(GLOO_TIMEOUT + 2)
        if self.kind != 'is slow':
            raise UserError(self.kind)


def misbehave(folder, world, rank, kind):
    """Train while one rank misbehaves; return the process and the message."""
    files = [f'{folder}/{other}.pt' for other in range(world) if other != rank]
    distributed.ANSWER_TIME = timedelta(seconds=5)
    with pytest.raises(UserError) as caught:
        order(
            folder,
            world,
            batch_size=2,
            sampler='DefaultSampler',
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
            hooks=[
                dict(type='Misbehave', rank=rank, kind=kind, files=files, begun=f'{folder}/{BEGUN}')
            ],
            env_cfg=dict(dist_cfg=dict(timeout=GLOO_TIMEOUT)),
        )
    return dict(pid=os.getpid(), said=str(caught.value))


def order(folder, world, batch_size, sampler, train_cfg, resumed=None, hooks=(), **options):
    """Train; return the samples of each iteration in this process."""
    safety = Config.fromfile(Path(__file__).parents[2] / 'configs' / '_base_' / 'safety.py').safety
    loader = dict(
        batch_size=batch_size,
        sampler=dict(type=sampler, shuffle=True),
        batch_sampler=dict(type='mmdet.AspectRatioBatchSampler'),
        dataset=dict(type='Photographs'),
    )
    cfg = Config(
        dict(
            model=dict(type='Line'),
            train_dataloader=loader,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
            train_cfg=train_cfg,
            default_hooks={
                'checkpoint': dict(safety['checkpoint'], by_epoch=False, interval=1),
                'resume': safety['resume'],
            },
            custom_hooks=[dict(type='LogSamples'), *hooks],
            randomness=dict(seed=5),
            work_dir=str(Path(folder) / 'work_dir'),
            launcher='pytorch' if world > 1 else 'none',
            load_from=resumed,
            resume=resumed is not None,
            **options,
        )
    )
    runner = build_runner(cfg)
    runner.train()
    return dict(samples=next(h.samples for h in runner.hooks if isinstance(h, LogSamples)))


# ---- evaluation ----


class Oracle(BaseModel):
    """Predict the ground truth with errors that depend only on the image."""

    def __init__(self, data_preprocessor=None, **kwargs):
        super().__init__(data_preprocessor)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            self.seen.append(sample.img_path)
            self.predict(sample, len(self.seen), int(Path(sample.img_path).stem))
        return data_samples


@DET_MODELS.register_module()
class OracleDetector(Oracle):
    def predict(self, sample, _, image):
        truth = sample.gt_instances
        boxes = getattr(truth.bboxes, 'tensor', truth.bboxes) / torch.tensor(
            sample.scale_factor * 2
        )
        boxes[0, 2] += 4 * image
        masks = truth.masks.to_tensor(torch.bool, 'cpu')
        masks[0, :, : 8 * image] = False
        scores = torch.tensor([0.9 - 0.2 * image, 0.8])
        sample.pred_instances = InstanceData(
            bboxes=boxes, labels=truth.labels, masks=masks, scores=scores
        )


@MODELS.register_module()
class OracleSegmentor(Oracle):
    def predict(self, sample, _, image):
        labels = sample.gt_sem_seg.data.clone()
        labels[:, : 10 * image] = 0
        sample.pred_sem_seg = PixelData(data=labels)


def evaluate(config, folder, world, model, options):
    """Test the oracle; return the metrics and the images that this process has seen."""
    cfg = Config.fromfile(config)
    cfg.launcher = 'pytorch' if world > 1 else 'none'
    cfg.work_dir = str(Path(folder) / 'work_dir')
    cfg.merge_from_dict(options)
    cfg.model = dict(type=model, data_preprocessor=cfg.model.data_preprocessor)
    evaluator = [cfg.test_evaluator]
    dump = 'mmdet.DumpDetResults' if 'Detector' in model else 'DumpResults'
    cfg.test_evaluator = [*evaluator, dict(type=dump, out_file_path=f'{folder}/predictions.pkl')]
    runner = build_runner(cfg)
    metrics = runner.test()
    oracle = runner.model.module if world > 1 else runner.model
    return dict(metrics=metrics, seen=oracle.seen)


# ---- gradients ----


def wrap(model):
    return MMDistributedDataParallel(
        model, **{k: v for k, v in cpu_model_wrapper(None, False).items() if k != 'type'}
    )


def images(rank, size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(rank))


def out_indices(folder, world):
    """Run two steps with each choice of stages; the second fails if a weight had no gradient."""
    init_cpu_process_group('pytorch')
    rank = torch.distributed.get_rank()
    steps = []
    for number in range(1, 5):
        for indices in itertools.combinations(range(4), number):
            for frozen in (-1, 0 if max(indices) == 0 else 1):
                torch.manual_seed(0)
                model = wrap(VMamba(THIN, out_indices=indices, frozen_stages=frozen).train())
                for _ in range(2):
                    sum(m.square().mean() for m in model(images(rank))).backward()
                steps.append((indices, frozen))
    return dict(steps=steps)


def gradients(folder, world):
    """Return gradients with and without checkpointing, and those of this process alone."""
    init_cpu_process_group('pytorch')
    rank = torch.distributed.get_rank()
    result = {}
    for name, with_cp, several in (
        ('plain', False, True),
        ('with_cp', True, True),
        ('alone', False, False),
    ):
        torch.manual_seed(0)
        model = VMamba(THIN, with_cp=with_cp).train()
        wrapped = wrap(model) if several else model
        for _ in range(2):  # accumulated; other paths are dropped in the second
            sum(m.square().mean() for m in wrapped(images(rank))).backward()
        result[name] = {k: p.grad.clone() for k, p in model.named_parameters()}
    return result


def batch_norm(folder, world):
    """Return the running statistics of this process before and after the hook."""
    init_cpu_process_group('pytorch')
    layer = torch.nn.BatchNorm2d(3).train()
    seen = images(torch.distributed.get_rank())
    layer(seen)
    own = {name: value.clone() for name, value in layer.named_buffers()}
    AverageBatchNormHook().after_train_iter(SimpleNamespace(model=layer), 0)
    return dict(images=seen, own=own, averaged=dict(layer.named_buffers()))


def fsdp(config, folder, world, options):
    """Train with FSDP; return the wrapped modules, the size of the shard, and the losses."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    runner = build(config, folder, world, custom_hooks=[dict(type='KeepLosses')], **options)
    runner.train()
    model = runner.model
    wrapped = [m for m in model.modules() if isinstance(m, FullyShardedDataParallel)]
    hook = next(h for h in runner.hooks if isinstance(h, KeepLosses))
    return dict(
        kind=type(runner).__name__,
        wrapped=[type(m.module).__name__ for m in wrapped],
        blocks=sum(isinstance(m, VSSBlock) for m in model.modules()),
        shard=sum(p.numel() for p in model.parameters()),
        losses=hook.losses,
        before=hook.before,
    )


# ---- processes ----


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def run_rank(job, rank, port):
    """Run one process of a job."""
    torch.set_num_threads(1)
    world, folder = job['world'], job['folder']
    if world > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=port,
        )
    log = os.open(f'{folder}/{rank}.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    result = globals()[job['function']](folder=folder, world=world, **job.get('arguments', {}))
    torch.save(result, f'{folder}/{rank}.pt')
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start(job):
    """Start all processes of a job."""
    Path(job['folder']).mkdir(parents=True)
    context, port = multiprocessing.get_context('fork'), free_port()
    ranks = [context.Process(target=run_rank, args=(job, r, port)) for r in range(job['world'])]
    for process in ranks:
        process.start()
    return ranks


def finish(ranks):
    """Wait for all processes of a job; the first failure ends them all."""
    try:
        waiting = {process.sentinel: process for process in ranks}
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), timeout=TIMEOUT)
            done = [waiting.pop(sentinel) for sentinel in ready]
            for process in done:
                process.join()
            if not done or any(process.exitcode for process in done):
                return
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
            process.join()


def wait_until_begun(job, ranks):
    """Wait until a job only waits, or has ended, so that the next one does not slow it down."""
    begun, end = Path(job['folder'], BEGUN), time.monotonic() + TIMEOUT
    while not begun.exists() and any(process.is_alive() for process in ranks):
        if time.monotonic() > end:
            return
        time.sleep(0.05)


def main():
    prepare_forks()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    # They wait for timeouts, all at the same time.
    begun = []
    for job in jobs:
        if job['function'] == 'misbehave':
            begun.append(start(job))
            wait_until_begun(job, begun[-1])
    for ranks in begun:
        finish(ranks)
    for job in jobs:
        if job['function'] != 'misbehave':
            finish(start(job))


if __name__ == '__main__':
    main()
