"""Process that reads checkpoint files and tells what each did: a line of JSON for each path.

A run of this file takes the path of a valid file, which must load equally before and after each
other one.
"""

import collections
import contextlib
import importlib
import io
import json
import logging
import os
import resource
import sys
import types
import warnings
from argparse import Namespace

import torch

from mmvmamba.checkpoint import load_tensors, read_local_checkpoint, state_dict_of
from mmvmamba.nn import VMambaNet

try:
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer
except ImportError:  # files of MMEngine are read without it
    HistoryBuffer = None

ERRORS = (FileNotFoundError, TypeError, ValueError)
#: Messages are single lines. That of a file that does not match the network lists tensors.
LENGTH = dict(read=600, state=600, match=2500)
IS_LINUX = sys.platform == 'linux'
#: Memory that a file may take, in the unit of ru_maxrss; no file is larger than a few megabytes.
MEMORY = 2**20 if IS_LINUX else 2**30
ADDRESS_SPACE = 8 * 2**30

# ---- what must not happen during a read ----

#: Beginnings of the names of audit events: programs, networks, foreign code and memory.
EVENTS = ('subprocess.', 'socket.', 'ctypes.', 'shutil.', 'tempfile.', 'urllib.', 'http.')
EVENTS += ('os.', 'pty.', 'webbrowser.', 'exec', 'compile', 'import', 'code.', 'marshal.', 'mmap.')
EVENTS += ('fcntl.', 'signal.', 'sqlite3.', 'smtplib.', 'sys.add', 'sys.set', 'gc.', 'ftplib.')
EVENTS += ('fuzz_canary.', 'pickle.find_class', 'builtins.input', 'breakpoint', 'resource.')
#: Reading alone asks for these.
HARMLESS = ('os.listdir', 'os.scandir', 'os.fwalk', 'os.walk')
seen = None


def listen(event, arguments):
    if seen is None:
        return
    if event == 'open':
        path, mode, flags = arguments
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if set(mode or '') & set('wax+') or (flags or 0) & writes:
            seen.append(f'open {path!r} {mode!r}')
    elif event.startswith(EVENTS) and event not in HARMLESS:
        seen.append(f'{event} {arguments!r:.200}')


@contextlib.contextmanager
def listening(events):
    global seen
    seen = events
    try:
        yield
    finally:
        seen = None


def canary():
    """Return a module whose functions tell that they were called."""

    class Canary:
        def __new__(cls, *args, **kwargs):
            sys.audit('fuzz_canary.new')
            return super().__new__(cls)

        def __setstate__(self, state):
            sys.audit('fuzz_canary.setstate')

        def method(self, *args):
            sys.audit('fuzz_canary.method')

    module = types.ModuleType('fuzz_canary')
    module.Canary = Canary
    module.call = lambda *args: sys.audit('fuzz_canary.call')
    return module


# ---- one file ----


class Fault(Exception):
    """Raised for behavior that no file may cause."""


def check_error(error, stage):
    """Check that an error is one clear line."""
    message = str(error)
    if not isinstance(error, ERRORS):
        raise Fault(f'{stage} raised {type(error).__name__}: {message:.300}') from error
    if not message.startswith("checkpoint '") or not message.isprintable():
        raise Fault(f'message of {stage}: {message[:300]!r}')
    if len(message) > LENGTH[stage]:
        raise Fault(f'message of {stage} has {len(message)} characters: {message[:300]!r}')


def tensors_in(content):
    """Yield all tensors of a checkpoint; each container is visited once."""
    waiting, visited = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set | Namespace) and id(value) not in visited:
            visited.add(id(value))
            if isinstance(value, dict):
                waiting += [*dict.keys(value), *dict.values(value)]
            else:
                waiting += vars(value).values() if isinstance(value, Namespace) else value


def check_content(content):
    """Check that what a user does with a checkpoint works."""
    for tensor in tensors_in(content):
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != 'cpu':
            raise Fault(f'tensor {tensor.layout}, {tensor.dtype}, {tensor.device}')
        if tensor.is_nested or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise Fault(f'tensor of type {type(tensor)}')
        clone = tensor.detach().clone()
        if 'float8' not in str(tensor.dtype):
            clone.sum()
        repr(tensor)
    torch.save(content, io.BytesIO())
    repr(content)


class Reader:
    """Reads files and checks the process afterwards."""

    def __init__(self, valid):
        self.valid = valid
        self.expected = state_dict_of(read_local_checkpoint(valid), valid)
        self.net = VMambaNet(arch=dict(dims=(4, 8), depths=(1, 1)), num_classes=2)
        self.own = {key: value.clone() for key, value in self.net.state_dict().items()}
        self.process = self.state_of_process()

    def state_of_process(self):
        """Return what a file must not change."""
        history = HistoryBuffer and dict(HistoryBuffer._statistics_methods)
        return dict(
            safe_globals=set(torch.serialization.get_safe_globals()),
            modules=set(sys.modules),
            dtype=torch.get_default_dtype(),
            folder=os.getcwd(),
            environment=dict(os.environ),
            limit=sys.getrecursionlimit(),
            seed=torch.initial_seed(),
            history=history,
            files=len(os.listdir('/proc/self/fd')) if IS_LINUX else 0,
        )

    def check_process(self):
        """Check that a file has left no trace, and that a valid one still loads."""
        now = self.state_of_process()
        changed = [key for key, value in self.process.items() if now[key] != value]
        self.process = now
        if changed:
            raise Fault(f'changed in the process: {changed}')
        tensors = state_dict_of(read_local_checkpoint(self.valid), self.valid)
        if not all(torch.equal(tensors[key], value) for key, value in self.expected.items()):
            raise Fault('a valid file loads other values')

    def read(self, path, opened, options, events):
        """Return the stage that a file reached, and its error."""
        stage, content, message = 'read', None, ''
        try:
            with listening(events):
                content = read_local_checkpoint(opened or path, name=path, **options)
                stage = 'state'
                tensors = state_dict_of(content, path)
                stage = 'match'
                load_tensors(self.net, tensors, path, new_head=True)
                stage = 'loaded'
        except Exception as error:
            check_error(error, stage)
            message = str(error)
            self.check_network()
        else:
            self.net.load_state_dict(self.own)
        check_content(content)
        return stage, message

    def check_network(self):
        """Check that a refused file changed nothing."""
        for key, value in self.net.state_dict().items():
            if not torch.equal(value, self.own[key]):
                self.net.load_state_dict(self.own)
                raise Fault(f'{key} of the network changed before the error')

    def report(self, path, is_open, real_classes):
        """Read a file and return all that can be told of it."""
        options, opened = {}, None
        if is_open:
            with open(path, 'rb') as file:
                opened = io.BytesIO(file.read())
        if real_classes and HistoryBuffer:
            options = dict(history_buffer=HistoryBuffer, config_dict=ConfigDict)
        events, fault, stage, message = [], '', 'fault', ''
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            try:
                stage, message = self.read(path, opened, options, events)
                self.check_process()
            except Exception as error:
                fault = str(error) if isinstance(error, Fault) else f'{type(error)}: {error}'
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > MEMORY:
            fault = fault or f'{grown / MEMORY:.1f} GB of memory'
        if events:
            fault = f'{fault} foreign: {events[:3]}'
        warned = collections.Counter(f'{w.category.__name__}: {w.message}'[:200] for w in warned)
        return dict(stage=stage, message=message, fault=fault[:900], warnings=list(warned))


def main():
    valid, *others = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    sys.modules['fuzz_canary'] = canary()
    reader = Reader(valid)
    for path in others:  # what is imported when it is first needed
        with contextlib.suppress(Exception):
            reader.read(path, None, {}, [])
    # What is set or imported once, by whatever file comes first.
    for codec in ('cp437', 'raw_unicode_escape', 'unicode_escape'):  # of zipfile and pickletools
        importlib.import_module(f'encodings.{codec}')
    if HistoryBuffer:
        HistoryBuffer()
    reader.process = reader.state_of_process()
    if IS_LINUX:
        used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE,) * 2)
    sys.addaudithook(listen)
    print('ready', flush=True)
    for line in sys.stdin:
        print(json.dumps(reader.report(**json.loads(line))), flush=True)


if __name__ == '__main__':
    main()
