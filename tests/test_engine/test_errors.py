import errno
import gc
import os
import sys

import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch.nn.parallel import DistributedDataParallel

from mmvmamba.engine import errors
from mmvmamba.mmcv_ops import MissingOpError


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


@pytest.fixture(autouse=True)
def unchanged_hooks(monkeypatch):
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)


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
def test_ctrl_c_is_not_an_error(main, capsys):
    with pytest.raises(SystemExit) as end:
        errors.run(main)
    assert end.value.code == 130
    assert capsys.readouterr().err == '\ninterrupted\n'


# ---- mistakes of the user and bugs ----


@MODELS.register_module()
class Picky(torch.nn.Module):
    """Raises what it is given, or builds a part."""

    def __init__(self, error=None, part=None):
        super().__init__()
        if error is not None:
            raise error
        if part is not None:
            self.part = MODELS.build(part)


def tool_that_builds(**cfg):
    return lambda: MODELS.build(dict(type='Picky', part=dict(type='mmengine.Picky', **cfg)))


def tool_that_raises(error):
    def main():
        raise error

    return main


def message_of(main, capsys, *expected):
    with pytest.raises(SystemExit) as end:
        errors.run(main, *expected)
    assert end.value.code == 2
    message, hint = capsys.readouterr().err.splitlines()
    assert hint == '(MMVMAMBA_TRACEBACK=1 shows where it was raised)'
    return message.partition(': error: ')[2]


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(error=ValueError('must be 1')), 'must be 1'),
        (dict(error=KeyError('no such name')), 'no such name'),
        (dict(error=AssertionError()), 'AssertionError'),
        (dict(error=ImportError('install wandb')), 'install wandb'),
        (dict(lenght=1), "Picky.__init__() got an unexpected keyword argument 'lenght'"),
    ],
)
def test_the_innermost_component_is_named(cfg, message, capsys):
    build = type(MODELS).build
    text = f'mmengine.Picky cannot be built: {message}'
    assert message_of(tool_that_builds(**cfg), capsys) == text
    assert type(MODELS).build is build


def test_a_component_that_is_not_registered(capsys):
    main = tool_that_builds(part=dict(type='Pickky'))
    assert message_of(main, capsys).startswith('Pickky cannot be built: Pickky is not in')


def test_a_component_given_as_a_class_or_in_a_list(capsys):
    cfg = dict(type=Picky, error=ValueError('must be 1'))
    for given in (cfg, [dict(type='Picky'), cfg]):
        message = message_of(lambda given=given: MODELS.build(given), capsys)
        assert message.endswith(' cannot be built: must be 1')


@pytest.mark.parametrize(
    'error',
    [errors.UserError('no'), MissingOpError('no'), FileNotFoundError('no'), PermissionError('no')],
)
def test_mistakes(error, capsys):
    assert message_of(tool_that_raises(error), capsys) == 'no'


def test_errors_that_a_tool_expects(capsys):
    main = tool_that_raises(ValueError('no'))
    assert message_of(main, capsys, ValueError, TypeError) == 'no'
    with pytest.raises(ValueError, match='no'):
        errors.run(main, TypeError)


class Chained(RuntimeError):
    """Raised by PyTorch while it handles the error of a signal."""

    def __init__(self, message, signal):
        super().__init__(message)
        self.__context__ = RuntimeError(
            f'DataLoader worker (pid 3) is killed by signal: {signal}. '
        )


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (OSError(errno.ENOSPC, 'No space left on device'), 'No space left on device; free some'),
        (OSError(errno.EROFS, 'Read-only', 'a.log'), "Read-only: 'a.log'; use another --work-dir"),
        (OSError(errno.EMFILE, 'Too many open files'), 'Too many open files; raise the limit'),
        (
            OSError('Caught OSError in x.\nOriginal\nOSError: [Errno 24] Too many open files'),
            'Errno 24] Too many open files; raise the limit (`ulimit -n`)',
        ),
        (MemoryError(), 'out of memory; to use less, lower the batch size'),
        (
            torch.OutOfMemoryError('CUDA out of memory. Tried'),
            'Tried; to use less, lower',
        ),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate"), "can't allocate; to use less"),
        (torch.distributed.DistNetworkError('EADDRINUSE'), 'EADDRINUSE; the address must be that'),
        (Chained('DataLoader worker (pid(s) 3) exited', 'Bus error'), '; enlarge /dev/shm'),
        (Chained('DataLoader worker (pid(s) 3) exited', 'Killed'), '; the system probably ran out'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_lack_of_resources(error, words, capsys):
    assert words in message_of(tool_that_raises(error), capsys)


@pytest.mark.parametrize(
    'error',
    [
        RuntimeError('bug'),
        ValueError('bug'),
        KeyError('bug'),
        OSError(errno.EBADF, 'bug'),
        Chained('DataLoader worker (pid(s) 3) exited: bug', 'Segmentation fault'),
    ],
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error), match='bug') as caught:
        errors.run(tool_that_raises(error))
    assert caught.value is error


@pytest.mark.parametrize('error', [TypeError('no'), KeyError('no'), AssertionError()])
def test_parts_that_no_registry_builds(error):
    with pytest.raises(errors.UserError, match='^a part cannot be built: (no|AssertionError)$'):
        with errors.named_build('a part'):
            raise error


def test_a_bug_of_this_package_is_not_a_mistake_in_a_part(monkeypatch):
    monkeypatch.setattr(errors, '_remedy', None)  # called in a frame of errors.py
    with pytest.raises(TypeError, match='not callable'), errors.named_build('a part'):
        errors.explain(ValueError())


@pytest.mark.parametrize('main', [tool_that_builds(error=RuntimeError('bug'))])
def test_a_bug_in_a_constructor(main):
    with pytest.raises(RuntimeError, match='bug'):
        errors.run(main)


def test_traceback_on_demand(monkeypatch):
    monkeypatch.setenv('MMVMAMBA_TRACEBACK', '1')
    with pytest.raises(errors.UserError, match='must be 1') as caught:
        errors.run(tool_that_builds(error=ValueError('must be 1')))
    assert isinstance(caught.value.__cause__, ValueError)


class FailingWhenFreed:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


def test_only_half_built_data_loaders_are_muted(capsys):
    message_of(tool_that_raises(errors.UserError('no')), capsys)
    for error in (AttributeError('_workers'), ValueError('a lost error')):
        FailingWhenFreed(error)
    err = capsys.readouterr().err
    assert 'ValueError: a lost error' in err
    assert '_workers' not in err


def test_the_error_of_a_data_loading_process():
    text = 'Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  File "x"\n'
    text += 'mmvmamba.engine.errors.UserError: bad sample'
    assert errors.explain(errors.UserError(text)) == 'bad sample'
    assert errors.explain(errors.UserError(f'{text} a:\n> line two')) == 'bad sample a:\n> line two'
    text = text.replace('mmvmamba.engine.errors.UserError', 'FileNotFoundError')
    assert errors.explain(FileNotFoundError(text)) == 'bad sample'


def test_no_secret_in_messages_and_tracebacks(capsys, monkeypatch):
    url, shown = 'http://user:pa55@host/x.pth?pa55', 'http://host/x.pth?...'
    assert message_of(tool_that_raises(errors.UserError(f'no {url}')), capsys) == f'no {shown}'
    monkeypatch.setenv('MMVMAMBA_TRACEBACK', '1')
    for error in (errors.UserError(url), RuntimeError(url)):
        error.__cause__ = ValueError(url)
        with pytest.raises(type(error)) as raised:
            errors.run(tool_that_raises(error))
        sys.excepthook(raised.type, raised.value, raised.tb)
        lines = capsys.readouterr().err.splitlines()
        assert f'ValueError: {shown}' in lines
        assert lines[-1].endswith(f'{type(error).__name__}: {shown}')
        assert 'pa55@' not in '\n'.join(lines)
