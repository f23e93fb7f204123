"""Runs that are killed, interrupted or out of disk space, and resumed, with real processes.

Every iteration that a resumed run logs must equal, to the last bit, that of a run that nothing has
interrupted. ``CHAOS_KILLS`` sets the number of random kills of the campaign (``make chaos``).
"""

import functools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from .fault_jobs import (
    DETECTION,
    NO_VALIDATION,
    SEGMENTATION,
    assert_same_losses,
    assert_same_state,
    descendants,
    last_checkpoint,
    losses,
    output,
    validations,
)

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get('CHAOS_KILLS', '4'))
SEED = int(os.environ.get('CHAOS_SEED', '0'))
END = dict(detection=16, segmentation=14)  # iterations
LAST = dict(detection='epoch_4.pth', segmentation='iter_14.pth')
TASKS = tuple(END)


def end_of(task, processes):
    """Return the last iteration; processes share the images of an epoch."""
    return END[task] // (processes if task == 'detection' else 1)


def one_fast(task):
    """Return both tasks, the other one as a slow test."""
    return [task, *(pytest.param(t, marks=pytest.mark.slow) for t in TASKS if t != task)]


@pytest.fixture(scope='module')
def configs(detection_config, segmentation_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp('faults')
    found = {}
    for task, base, text in (
        ('detection', detection_config, DETECTION),
        ('segmentation', segmentation_config, SEGMENTATION),
    ):
        found[task] = folder / f'{task}.py'
        found[task].write_text(f'_base_ = {str(base)!r}\n{text}')
    return found


def start_ranks(server, config, work_dir, *args, processes=2, faults=None):
    """Start the processes of a run as torchrun does, with faults for each or for the first."""
    faults = faults or {}
    if processes == 1:
        return [server.start(config, work_dir, *args, faults=faults)]
    if isinstance(faults, dict):
        faults = [faults, *[{}] * (processes - 1)]
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    env = dict(WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    args = ('--launcher', 'pytorch', *args)
    return [
        server.start(
            config, work_dir, *args, env=dict(env, RANK=str(r), LOCAL_RANK=str(r)), faults=f
        )
        for r, f in enumerate(faults)
    ]


def run_to_end(server, config, work_dir, *args, processes):
    pids = start_ranks(server, config, work_dir, *args, processes=processes)
    assert not any([server.wait(pid) for pid in pids]), output(work_dir)


@pytest.fixture(scope='module')
def reference(server, configs, tmp_path_factory):
    """Return the folder, the losses and the duration of an uninterrupted run."""

    @functools.cache
    def reference(task, processes=1):
        work_dir = tmp_path_factory.mktemp('reference') / 'run'
        begin = time.monotonic()
        run_to_end(server, configs[task], work_dir, processes=processes)
        seconds = time.monotonic() - begin
        logged = losses(work_dir)
        assert sorted(logged) == list(range(1, end_of(task, processes) + 1))
        return work_dir, logged, seconds

    return reference


@pytest.fixture
def finish(server, configs, reference):
    """Resume until the end and compare with the uninterrupted run."""

    def finish(task, work_dir, *args, processes=1):
        run_to_end(server, configs[task], work_dir, '--resume', *args, processes=processes)
        stock, logged, _ = reference(task, processes)
        assert_same_losses(work_dir, logged)
        assert end_of(task, processes) in losses(work_dir)
        assert_same_state(work_dir / LAST[task], stock / LAST[task])

    return finish


@pytest.mark.parametrize('task', one_fast('detection'))
def test_two_runs_are_equal_and_random(server, configs, reference, task, tmp_path):
    """Also with workers; and the losses of the iterations differ."""
    workers = ('--cfg-options', 'train_dataloader.num_workers=2')
    assert server.run(configs[task], tmp_path / 'run', *workers) == 0
    stock, logged, _ = reference(task)
    assert_same_losses(tmp_path / 'run', logged)
    assert_same_state(tmp_path / 'run' / LAST[task], stock / LAST[task])
    assert len({entries[0]['loss'] for entries in logged.values()}) == END[task]


def kills():
    """Yield task, processes, killed ranks, and the moment or the position in a checkpoint."""
    rng = random.Random(SEED)
    inside = [0.0, 0.1, 0.5, 0.9, 1.0]
    for number in range(KILLS):
        task = TASKS[number % 2]
        # Of both tasks one at a random moment and one inside a checkpoint, which rank 0 writes.
        processes = 2 if number % 20 in (0, 5, 6, 15) else 1
        if number % 4 == 3 or number % 10 == 0:
            yield task, processes, (0,), None, (rng.randint(1, 2), inside[number % 5])
        else:
            ranks = rng.choice([(0,), (1,), (0, 1)]) if processes == 2 else (0,)
            yield task, processes, ranks, rng.random(), None


def test_killed_at_any_time(server, configs, reference, finish, tmp_path):
    """kill -9 at random times, and in the middle of writing checkpoints; then run to the end.

    Of two processes one or both are killed; the other does not wait for ever.
    """
    inside = 0
    began = {}
    for task, processes, ranks, moment, writing in kills():
        run = task, processes
        _, logged, seconds = reference(*run)
        work_dir = tmp_path / f'{task}_{processes}'
        began.setdefault(run, 0)
        if (work_dir / LAST[task]).exists():
            began[run] += 1
            work_dir.rename(f'{work_dir}_{began[run]}')
        # Whoever starts a run again does not change the command.
        args = ['--resume', '--cfg-options', 'env_cfg.dist_cfg.timeout=20']
        args += [] if writing is None else ['train_dataloader.num_workers=1']
        faults = {} if writing is None else dict(die=writing)
        pids = start_ranks(
            server, configs[task], work_dir, *args, processes=processes, faults=faults
        )
        status = server.wait(pids[ranks[0]], 120 if moment is None else moment * seconds)
        if status is None:
            assert moment is not None, output(work_dir)
            status = server.kill(pids[ranks[0]])
            for rank in ranks[1:]:
                os.killpg(pids[rank], signal.SIGKILL)
        assert status in (0, -signal.SIGKILL), output(work_dir)
        for rank in {*range(processes)}.difference(ranks[:1]):
            assert server.wait(pids[rank], 60) is not None, output(work_dir)
        inside += writing is not None and status == -signal.SIGKILL
        assert_same_losses(work_dir, logged)
    assert inside >= min(5, KILLS // 4)
    for (task, processes), count in began.items():
        work_dir = tmp_path / f'{task}_{processes}'
        finish(task, work_dir, processes=processes)
        for number in range(1, count + 1):
            old = Path(f'{work_dir}_{number}', LAST[task])
            assert_same_state(old, reference(task, processes)[0] / LAST[task])
        assert not list(work_dir.glob('.*writing'))


@pytest.mark.parametrize('task', one_fast('detection'))
def test_the_last_whole_checkpoint_stays(server, configs, finish, task, tmp_path):
    """The folder may hold two; the third is truncated, and the second stays."""
    work_dir = tmp_path / 'run'
    assert server.run(configs[task], work_dir, faults=dict(die=(3, 0.5))) == -signal.SIGKILL
    names = ['epoch_1.pth', 'epoch_2.pth']
    if task == 'segmentation':
        names = ['iter_3.pth', 'iter_6.pth']
    assert sorted(p.name for p in work_dir.glob('*.pth')) == names
    assert last_checkpoint(work_dir).name == names[1]
    finish(task, work_dir)
    assert len(list(work_dir.glob('*.pth'))) == 2


@pytest.mark.parametrize('task', one_fast('segmentation'))
def test_a_full_disk(server, configs, finish, task, tmp_path):
    """The run stops with a message, leaves no file, and resumes once there is space."""
    work_dir = tmp_path / 'run'
    assert server.run(configs[task], work_dir, faults=dict(die=(2, 1.0))) == -signal.SIGKILL
    before = last_checkpoint(work_dir)
    limit = before.stat().st_size // 2
    assert server.run(configs[task], work_dir, '--resume', faults=dict(limit=(limit,))) == 2
    assert 'cannot be written: File too large; earlier files are kept' in output(work_dir)
    assert last_checkpoint(work_dir) == before
    assert not list(work_dir.glob('.*'))
    finish(task, work_dir)


@pytest.mark.parametrize('task', TASKS)
def test_sigterm(server, configs, reference, finish, task, tmp_path):
    """Saves between two checkpoints, exits with 0, and the next batch is that of the same order.

    The data-loading processes get the signal too.
    """
    work_dir = tmp_path / 'run'
    workers = ('--cfg-options', 'train_dataloader.num_workers=2')
    pid = server.start(configs[task], work_dir, *workers)
    while not any(step >= 5 for step in losses(work_dir)):
        assert server.wait(pid, 0.002) is None, output(work_dir)
    os.killpg(pid, signal.SIGTERM)
    assert server.wait(pid) == 0
    done = max(losses(work_dir))
    assert 5 <= done < END[task]
    assert last_checkpoint(work_dir).name == 'interrupted.pth'
    assert f'after iteration {done} and stopped; continue with --resume' in output(work_dir)
    finish(task, work_dir)
    assert not (work_dir / 'interrupted.pth').exists()
    # None was done twice and none left out.
    assert [len(entries) for _, entries in sorted(losses(work_dir).items())] == [1] * END[task]


@pytest.mark.parametrize('task', one_fast('detection'))
def test_a_loss_that_is_not_finite(server, configs, finish, task, tmp_path):
    """The run names the images and stops before it saves; the previous checkpoint is good."""
    work_dir = tmp_path / 'run'
    assert server.run(configs[task], work_dir, faults=dict(poison=(6, 6, False))) == 2
    found = re.search(
        r"iteration 6: losses \{'loss': nan\} are not finite for images \[(.*)\]", output(work_dir)
    )
    assert found is not None, output(work_dir)
    assert re.fullmatch(r"('.*/images/\d\.png'(, )?)+", found[1])
    name = dict(detection='epoch_1.pth', segmentation='iter_3.pth')[task]
    assert f'the last good checkpoint is {last_checkpoint(work_dir)}' in output(work_dir)
    assert last_checkpoint(work_dir).name == name
    finish(task, work_dir)


def test_weights_that_are_not_finite_are_not_saved(server, configs, finish, tmp_path):
    """The last gradient before a checkpoint makes the weights NaN, but not the loss."""
    work_dir = tmp_path / 'run'
    options = ('--cfg-options', 'optim_wrapper.clip_grad=None')
    faults = dict(poison=(6, 6, True))
    assert server.run(configs['segmentation'], work_dir, *options, faults=faults) == 2
    assert re.search(r'iteration 6: \d+ tensor\(s\) are not finite', output(work_dir))
    assert last_checkpoint(work_dir).name == 'iter_3.pth'
    finish('segmentation', work_dir)


def test_accumulated_gradients(server, configs, tmp_path):
    """Checkpoints are saved between two batches of one step."""
    options = ('--cfg-options', 'optim_wrapper.accumulative_counts=2')
    stock, killed = tmp_path / 'stock', tmp_path / 'killed'
    assert server.run(configs['segmentation'], stock, *options) == 0, output(stock)
    faults = dict(die=(2, 0.5))
    config = configs['segmentation']
    assert server.run(config, killed, *options, faults=faults) == -signal.SIGKILL
    assert last_checkpoint(killed).name == 'iter_3.pth'
    assert server.run(config, killed, '--resume', *options) == 0, output(killed)
    assert_same_losses(killed, losses(stock))
    assert_same_state(killed / 'iter_14.pth', stock / 'iter_14.pth')


@pytest.mark.parametrize('task', one_fast('detection'))
def test_sigterm_in_a_validation(server, configs, finish, task, tmp_path):
    """The model holds the averaged weights there, which must not be saved as its own."""
    work_dir, config = tmp_path / 'run', tmp_path / 'validated.py'
    config.write_text(configs[task].read_text().replace(NO_VALIDATION, ''))
    interval = dict(detection=2, segmentation=5)[task]
    options = (
        '--cfg-options',
        f'train_cfg.val_interval={interval}',
        'val_dataloader.num_workers=2',
    )
    assert server.run(config, work_dir, *options, faults=dict(preempt=())) == 0, output(work_dir)
    assert last_checkpoint(work_dir).name == 'interrupted.pth'
    done = dict(detection=8, segmentation=5)[task]
    assert max(losses(work_dir)) == done
    assert not validations(work_dir)
    # It is done when the run goes on, and once; all are when it goes on once more.
    assert server.run(config, work_dir, '--resume', *options) == 0, output(work_dir)
    repeated = f'running the missing validation after iteration {done}'
    assert repeated in output(work_dir)
    steps = dict(detection=[2, 4], segmentation=[5, 10, 14])[task]
    assert validations(work_dir) == steps
    assert server.run(config, work_dir, '--resume', *options) == 0
    assert validations(work_dir) == steps
    finish(task, work_dir)


def test_resume_without_a_checkpoint(server, configs, reference, tmp_path):
    """First run of a command, which is repeated unchanged."""
    work_dir = tmp_path / 'run'
    assert server.run(configs['segmentation'], work_dir, '--resume') == 0
    assert 'no checkpoint to resume from' in output(work_dir)
    assert_same_losses(work_dir, reference('segmentation')[1])


@pytest.mark.parametrize('task', one_fast('detection'))
def test_a_checkpoint_without_a_position(server, configs, finish, task, tmp_path):
    """MMEngine's own hooks wrote it; the position follows from its counters."""
    work_dir = tmp_path / 'run'
    assert server.run(configs[task], work_dir, faults=dict(die=(3, 0.5))) == -signal.SIGKILL
    path = last_checkpoint(work_dir)
    state = torch.load(path, weights_only=False)
    del state['meta']['position']
    torch.save(state, path)
    finish(task, work_dir)


@pytest.mark.slow
def test_another_batch_size(server, configs, tmp_path):
    """Continue at the same sample, with a warning about bit-exactness."""
    work_dir, config = tmp_path / 'run', configs['segmentation']
    assert server.run(config, work_dir, faults=dict(die=(2, 0.5))) == -signal.SIGKILL
    options = ('--cfg-options', 'train_dataloader.batch_size=3')
    assert server.run(config, work_dir, '--resume', *options) == 0, output(work_dir)
    assert 'this run has 1 and 3: training continues from the same sample' in output(work_dir)
    state = torch.load(work_dir / LAST['segmentation'], weights_only=False)
    position = state['meta']['position']
    assert [tuple(progress) for progress in position['done']] == [(2, 3), (3, 11)]


# ---- several processes ----


def wait_for_iteration(server, pid, work_dir, iteration):
    while not any(step >= iteration for step in losses(work_dir)):
        assert server.wait(pid, 0.002) is None, output(work_dir)


def test_sigterm_to_one_rank(server, configs, reference, tmp_path):
    """Both stop after the same iteration."""
    work_dir = tmp_path / 'run'
    options = ('--cfg-options', 'default_hooks.preemption.interval=2')
    pids = start_ranks(server, configs['segmentation'], work_dir, *options)
    wait_for_iteration(server, pids[0], work_dir, 4)
    os.kill(pids[1], signal.SIGTERM)
    assert [server.wait(pid, 60) for pid in pids] == [0, 0], output(work_dir)
    assert last_checkpoint(work_dir).name == 'interrupted.pth'
    pids = start_ranks(server, configs['segmentation'], work_dir, '--resume')
    assert [server.wait(pid) for pid in pids] == [0, 0], output(work_dir)
    assert_same_losses(work_dir, reference('segmentation', 2)[1])
    assert [len(entries) for _, entries in sorted(losses(work_dir).items())] == [1] * 14


@pytest.mark.slow
def test_sigterm_to_one_rank_in_a_validation(server, configs, reference, tmp_path):
    """Both stop after the same validation batch, and repeat the validation."""
    work_dir, config = tmp_path / 'run', tmp_path / 'validated.py'
    config.write_text(configs['segmentation'].read_text().replace(NO_VALIDATION, ''))
    options = ('--cfg-options', 'default_hooks.preemption.interval=1', 'train_cfg.val_interval=5')
    faults = ({}, dict(preempt=()))
    pids = start_ranks(server, config, work_dir, *options, faults=faults)
    assert [server.wait(pid) for pid in pids] == [0, 0], output(work_dir)
    assert last_checkpoint(work_dir).name == 'interrupted.pth'
    assert max(losses(work_dir)) == 5 and not validations(work_dir)
    pids = start_ranks(server, config, work_dir, '--resume', *options)
    assert [server.wait(pid) for pid in pids] == [0, 0], output(work_dir)
    assert validations(work_dir) == [5, 10, 14]
    assert_same_losses(work_dir, reference('segmentation', 2)[1])
    assert [len(entries) for _, entries in sorted(losses(work_dir).items())] == [1] * 14


@pytest.mark.slow
def test_shards(server, configs, tmp_path):
    """Stopped by SIGTERM in a validation, then killed while rank 0 writes a checkpoint."""
    config, fsdp = tmp_path / 'sharded.py', ROOT / 'configs' / '_base_' / 'fsdp.py'
    text = configs['detection'].read_text().replace(NO_VALIDATION, '')
    base, text = text.split('\n', 1)
    config.write_text(f'_base_ = [{base.removeprefix("_base_ = ")}, {str(fsdp)!r}]\n{text}')
    options = (
        '--resume',
        '--cfg-options',
        'custom_hooks=[]',
        'optim_wrapper.clip_grad=None',
        'default_hooks.preemption.interval=1',
        'default_hooks.checkpoint.save_best=auto',
    )
    stock, work_dir = tmp_path / 'stock', tmp_path / 'run'
    pids = start_ranks(server, config, stock, *options)
    assert [server.wait(pid) for pid in pids] == [0, 0], output(stock)
    pids = start_ranks(server, config, work_dir, *options, faults=({}, dict(preempt=())))
    assert [server.wait(pid) for pid in pids] == [0, 0], output(work_dir)
    meta = torch.load(last_checkpoint(work_dir), weights_only=False)['meta']
    assert (meta['epoch'], meta['iter']) == (1, 2)
    # The best one, epoch_1.pth again and epoch_2.pth are before it.
    pids = start_ranks(server, config, work_dir, *options, faults=dict(die=(4, 1.0)))
    assert server.wait(pids[0]) == -signal.SIGKILL, output(work_dir)
    assert server.wait(pids[1], 60) not in (0, None)
    pids = start_ranks(server, config, work_dir, *options)
    assert [server.wait(pid) for pid in pids] == [0, 0], output(work_dir)
    assert_same_losses(work_dir, losses(stock))
    assert sorted(set(validations(work_dir))) == validations(stock) == [1, 2, 3, 4]
    assert_same_state(work_dir / 'epoch_4.pth', stock / 'epoch_4.pth')


@pytest.mark.slow
def test_torchrun_restarts(configs, tmp_path):
    """A worker is killed; torchrun restarts both with the same command."""
    work_dir = tmp_path / 'run'
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', configs['segmentation'], '2', '--resume']
    env = dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', MAX_RESTARTS='1')
    env['PYTHON'] = sys.executable
    with open(tmp_path / 'output.txt', 'w') as log:
        process = subprocess.Popen(
            [*command, '--work-dir', work_dir], cwd=tmp_path, env=env, stdout=log, stderr=log
        )
        wait_for = time.monotonic() + 120
        while not any(step >= 5 for step in losses(work_dir)):
            assert process.poll() is None, (tmp_path / 'output.txt').read_text()
            assert time.monotonic() < wait_for
            time.sleep(0.01)
        os.kill(descendants(process.pid)[-1], signal.SIGKILL)
        try:
            assert process.wait(120) == 0, (tmp_path / 'output.txt').read_text()
        finally:
            process.terminate()
    logged = losses(work_dir)
    assert sorted(logged) == list(range(1, END['segmentation'] + 1))
    for entries in logged.values():
        assert all(values == entries[0] for values in entries)
