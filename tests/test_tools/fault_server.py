"""Server that imports everything once and forks a process for every requested run of a tool.

Each line on stdin is a JSON object, each answer one on stdout. ``start`` answers the process id,
``wait`` the exit status (a negative one is a signal's number) or null after ``timeout`` seconds.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]


def preload():
    """Import the slow modules, without starting a thread or a runner."""
    # Before mmcv, which may have no compiled ops.
    import mmvmamba  # noqa: F401 # isort: skip
    import torch
    from quick_runs import prepare_forks

    prepare_forks()
    torch.set_num_threads(1)


class DyingFile:
    """File whose process is killed after a part of its bytes is written."""

    def __init__(self, file, fraction):
        self.file, self.fraction = file, fraction

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: int(len(data) * self.fraction)])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(nth, fraction):
    """Kill this process in its n-th checkpoint: while writing it or, at 1.0, before renaming."""
    from mmvmamba.engine import atomic_io

    seen = []

    def is_nth(path):
        seen.append(path)
        return len(seen) == nth

    def open_file(path, mode, *args, **kwargs):
        file = open(path, mode, *args, **kwargs)
        checkpoint = '.pth' in os.fspath(path) and mode == 'wb'
        return DyingFile(file, fraction) if checkpoint and is_nth(path) else file

    def replace(source, target):
        if os.fspath(target).endswith('.pth') and is_nth(target):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    rename = os.replace
    if fraction < 1:
        atomic_io.open = open_file
    else:
        os.replace = replace


def limit_files(size):
    """Limit the size of all files."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def poison_losses(first, last, gradients):
    """Make the losses or the gradients of some iterations NaN."""
    from mmengine.model import BaseModel

    parse = BaseModel.parse_losses
    seen = []

    def parse_losses(self, losses):
        seen.append(None)
        total, variables = parse(self, losses)
        if first <= len(seen) <= last:
            if gradients:
                total.register_hook(lambda gradient: gradient * float('nan'))
            else:
                total = total * float('nan')
                variables['loss'] = total
        return total, variables

    BaseModel.parse_losses = parse_losses


def preempt_validation():
    """Have SIGTERM sent to this process and its workers with the first validation batch."""
    from mmengine.runner import ValLoop

    run_iter = ValLoop.run_iter

    def signalled(self, *args):
        # By another process: of their parent's the workers end as they should.
        command = ['/bin/sh', '-c', f'kill -s TERM -- -{os.getpgrp()}']
        subprocess.run(command, start_new_session=True, check=True)
        return run_iter(self, *args)

    ValLoop.run_iter = signalled


FAULTS = dict(
    die=die_while_writing, limit=limit_files, poison=poison_losses, preempt=preempt_validation
)


def run_child(job):
    os.setpgid(0, 0)
    log = os.open(job['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job['env'])
    os.chdir(job['cwd'])
    sys.argv = [job['tool'], *job['args']]
    for name, arguments in job['faults'].items():
        FAULTS[name](*arguments)
    try:
        runpy.run_path(str(ROOT / 'tools' / job['tool']), run_name='__main__')
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(pid, timeout):
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


def main():
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # some imports print
    preload()
    answers.write('{}\n')
    answers.flush()
    for line in sys.stdin:
        job = json.loads(line)
        if job['do'] == 'start':
            answer = os.fork()
            if answer == 0:
                run_child(job)
        else:
            answer = wait(job['pid'], job['timeout'])
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


if __name__ == '__main__':
    main()
