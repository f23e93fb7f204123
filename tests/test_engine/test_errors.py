import gc
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmvmamba.engine import errors


class Runner:
    """Holds a process group in a cycle, as MMEngine's runner and its hooks do."""

    def __init__(self):
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
        self.model = DistributedDataParallel(torch.nn.Linear(2, 2))
        self.hook = self.__init__

    def train(self, stop):
        self.model(torch.ones(1, 2)).sum().backward()
        if stop:
            raise SystemExit(3)


@pytest.fixture
def no_group():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='counts the threads in /proc')
@pytest.mark.parametrize(('stop', 'code'), [(False, 0), (True, 3)])
def test_the_threads_of_a_process_group_end_with_the_tool(stop, code, no_group):
    """One that outlives the interpreter aborts the process."""
    gc.collect()
    gc.disable()  # only the tool itself may free the cycle
    try:
        before = len(os.listdir('/proc/self/task'))
        with pytest.raises(SystemExit) as end:
            errors.run(lambda: Runner().train(stop))
        assert end.value.code == code
        assert not dist.is_initialized()
        assert len(os.listdir('/proc/self/task')) <= before
    finally:
        gc.enable()


def interrupt():
    raise KeyboardInterrupt


def interrupt_the_formatting_of_a_config():
    try:
        raise KeyboardInterrupt
    except BaseException:
        raise SyntaxError('Failed to format the config file')  # noqa: B904  (as MMEngine does)


@pytest.mark.parametrize('main', [interrupt, interrupt_the_formatting_of_a_config])
def test_ctrl_c_is_no_error(main, capsys):
    with pytest.raises(SystemExit) as end:
        errors.run(main)
    assert end.value.code == 130
    assert capsys.readouterr().err == '\ninterrupted\n'
