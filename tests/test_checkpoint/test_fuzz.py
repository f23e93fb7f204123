"""Malicious checkpoints: none crashes, hangs or runs anything; each is read or refused in one line.

``FUZZ_FILES`` sets the number of generated files, ``FUZZ_SEED`` the campaign and ``FUZZ_FIRST`` the
number of its first file (``make fuzz``).
"""

import collections
import hashlib
import json
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvmamba.checkpoint import read_local_checkpoint

from .archives import safetensors_of
from .fuzzed_files import PICKLES, fuzzed_file, known_files
from .valid_files import VALID, saved, saved_without_checksums, valid_file

FILES = int(os.environ.get('FUZZ_FILES', '500'))
SEED = int(os.environ.get('FUZZ_SEED', '0'))
FIRST = int(os.environ.get('FUZZ_FIRST', '0'))
#: Seconds for a file.
PATIENCE = 20
#: Refusals by the first check of a pickle: an instruction or a name that is not allowed.
FIRST_CHECK = re.compile('may not be loaded from a file|must be dense|opcode')


class Worker:
    """Process that reads files, started again after each crash."""

    def __init__(self, folder):
        self.valid = [folder / f'valid{i}{valid_file(name)[0]}' for i, name in enumerate(VALID)]
        for path, name in zip(self.valid, VALID, strict=True):
            path.write_bytes(valid_file(name)[1])
        self.errors = folder / 'stderr'
        self.process = None

    def start(self):
        # Relative paths keep the messages short.
        self.process = subprocess.Popen(
            [sys.executable, '-X', 'faulthandler', str(Path(__file__).with_name('fuzz_worker.py'))]
            + [path.name for path in self.valid],
            cwd=self.valid[0].parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open('w'),
            env=dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1'),
        )
        assert self.process.stdout.readline() == b'ready\n', self.errors.read_text()

    def read(self, path, **options):
        """Return what a file did to the process that read it."""
        if self.process is None:
            self.start()
        request = json.dumps(dict(path=path.name, **options)) + '\n'
        self.process.stdin.write(request.encode())
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.stop()
            return dict(stage='fault', message='', warnings=[], fault=f'more than {PATIENCE} s')
        answer = self.process.stdout.readline()
        if answer:
            return json.loads(answer)
        status = self.process.wait()
        self.process = None
        lines = self.errors.read_text().splitlines()
        where = next((line for line in lines if 'File' in line), '')
        fault = f'the process ended with status {status} {where}'
        return dict(stage='fault', message='', warnings=[], fault=fault)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path)
    yield worker
    worker.stop()


class Summary:
    """Counts of what the files of a campaign did."""

    def __init__(self):
        self.stages = collections.defaultdict(collections.Counter)
        self.messages = collections.Counter()
        self.warnings = collections.Counter()
        self.first_check = collections.Counter()
        self.faults = []

    def add(self, file, report):
        """Count what a file did and return True if it must not do that."""
        kind = file.kind.split(':')[0]
        self.stages[kind]['fault' if report['fault'] else report['stage']] += 1
        self.messages[general(report['message'])] += 1
        self.warnings.update(map(general, report['warnings']))
        if kind in PICKLES and not report['fault']:
            self.first_check[bool(FIRST_CHECK.search(report['message']))] += 1
        fault = report['fault']
        if kind == 'valid' and report['stage'] == 'read':
            fault = f'refused: {report["message"]}'
        if fault:
            self.faults.append(f'{file.name} ({file.kind}): {fault}')
        return bool(fault)

    def share_past_first_check(self):
        return self.first_check[False] / max(1, self.first_check.total())

    def __str__(self):
        stages = ('loaded', 'match', 'state', 'read', 'fault')
        lines = [' ' * 14 + ''.join(f'{stage:>8}' for stage in stages)]
        for kind, counts in sorted(self.stages.items()):
            lines.append(f'{kind:14}' + ''.join(f'{counts[stage]:8}' for stage in stages))
        total = sum(self.stages.values(), collections.Counter())
        lines.append(f'{"all":14}' + ''.join(f'{total[stage]:8}' for stage in stages))
        lines.append(f'{self.share_past_first_check():.0%} of the pickles pass the first check')
        lines += [f'{count:6} {message}' for message, count in self.messages.most_common(80)]
        lines += [f'{count:6} warning {text}' for text, count in self.warnings.most_common()]
        return '\n'.join(lines)


def general(message):
    """Return a message without what is special to one file."""
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", message)
    return re.sub(r'\d+', '#', message)[:140]


def summary_of(worker, files, folder):
    """Let a worker read files in each way in turn, and keep those that fail."""
    summary = Summary()
    failures = folder / 'failures'
    failures.mkdir()
    for number, file in files:
        path = folder / file.name
        path.write_bytes(file.data)
        report = worker.read(path, is_open=number % 3 == 0, real_classes=number % 2 == 1)
        if summary.add(file, report):
            path.rename(failures / f'{number}-{file.name}')
        else:
            path.unlink()
    return summary


def check_faults(summary, folder):
    text = '\n'.join(summary.faults)
    if summary.faults:
        pytest.fail(f'{len(summary.faults)} files in {folder / "failures"}:\n{text}', pytrace=False)


def test_known_attacks(worker, tmp_path):
    check_faults(summary_of(worker, enumerate(known_files()), tmp_path), tmp_path)


def test_campaign(worker, tmp_path):
    files = ((number, fuzzed_file(SEED, number)) for number in range(FIRST, FIRST + FILES))
    summary = summary_of(worker, files, tmp_path)
    print(f'\n{FILES} files of seed {SEED} from number {FIRST}\n{summary}')
    check_faults(summary, tmp_path)
    assert FILES < 100 or summary.share_past_first_check() >= 0.25


# ---- damage ----

NUMBERS = torch.arange(1.0, 9)
BITS = 8 * NUMBERS.nbytes


def small_safetensors():
    entry = dict(dtype='F32', shape=[8], data_offsets=[0, NUMBERS.nbytes])
    return safetensors_of({'a': entry}, NUMBERS.numpy().tobytes())


#: Files of one tensor: the end of the name, and the content.
SMALL = {
    'zip': ('.pth', lambda: saved({'a': NUMBERS})),
    'zip without checksums': ('.pth', lambda: saved_without_checksums({'a': NUMBERS})),
    'legacy': ('.pth', lambda: saved({'a': NUMBERS}, _use_new_zipfile_serialization=False)),
    'safetensors': ('.safetensors', small_safetensors),
}
WITHOUT_CHECKSUMS = ('zip without checksums', 'legacy', 'safetensors')


def save_small(folder, kind, hashed):
    """Save one of the small files, with its hash in its name or without."""
    ending, build = SMALL[kind]
    data = build()
    # Few digits may all be decimal, which is taken for a date.
    name = f'x-{hashlib.sha256(data).hexdigest()}{ending}' if hashed else f'x{ending}'
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(
    ('kind', 'hashed'), [('zip', False), *((kind, True) for kind in SMALL)], ids=str
)
def test_every_flipped_bit_of_a_tensor_is_refused(tmp_path, kind, hashed):
    path = save_small(tmp_path, kind, hashed)
    assert torch.equal(read_local_checkpoint(path)['a'], NUMBERS)
    data = bytearray(path.read_bytes())
    start = data.index(NUMBERS.numpy().tobytes())
    for bit in range(BITS):
        data[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=f"^checkpoint '.*{path.name}' (is damaged: |does not match the hash )"
        ):
            read_local_checkpoint(path)
        data[start + bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize('hashed', [True, False])
@pytest.mark.parametrize('kind', list(SMALL))
def test_one_warning_where_nothing_vouches_for_a_file(tmp_path, caplog, kind, hashed):
    path = save_small(tmp_path, kind, hashed)
    read_local_checkpoint(path)
    expected = not hashed and kind in WITHOUT_CHECKSUMS
    assert [record.levelname for record in caplog.records] == ['WARNING'] * expected
    assert all(path.name in record.getMessage() for record in caplog.records)
