"""python -m mmvmamba.dropin."""

import os
import subprocess
import sys

SCRIPT = """
import sys
from torch.utils.data import DataLoader, Dataset
from selective_scan_cuda_core import fwd
from neighbor import VALUE


class Names(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return f'{fwd.__module__} {VALUE} {__name__}'


if __name__ == '__main__':
    print(sys.argv, fwd.__module__)
    print(*next(iter(DataLoader(Names(), 2, num_workers=1, multiprocessing_context='spawn'))))
"""


def run(*args, folder, **env):
    command = [sys.executable, '-m', 'mmvmamba.dropin', *map(str, args)]
    env = {**os.environ, **env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def write_script(folder):
    (folder / 'scripts').mkdir()
    (folder / 'scripts' / 'script.py').write_text(SCRIPT)
    (folder / 'scripts' / 'neighbor.py').write_text('VALUE = 3')


def test_script_with_spawned_processes(tmp_path):
    write_script(tmp_path)
    result = run('scripts/script.py', '--replace', 'y', folder=tmp_path)
    name = 'mmvmamba.dropin.extensions'
    assert result.stdout.splitlines() == [
        f"['scripts/script.py', '--replace', 'y'] {name}",
        f'{name} 3 __mp_main__ {name} 3 __mp_main__',
    ], result.stderr


def test_replace(tmp_path):
    write_script(tmp_path)
    installed = tmp_path / 'scripts' / 'selective_scan_cuda_core.py'
    installed.write_text('def fwd(): pass')
    result = run('scripts/script.py', folder=tmp_path)
    assert result.stdout.splitlines()[0].endswith(' selective_scan_cuda_core'), result.stderr
    result = run('--replace', 'scripts/script.py', folder=tmp_path)
    name = 'mmvmamba.dropin.extensions'
    assert result.stdout.splitlines() == [
        f"['scripts/script.py'] {name}",
        f'{name} 3 __mp_main__ {name} 3 __mp_main__',
    ], result.stderr


def test_report(tmp_path):
    (tmp_path / 'selective_scan_cuda.py').write_text('raise OSError("libc10.so: not found")')
    (tmp_path / 'selective_scan_cuda_core.py').write_text('')
    result = run(folder=tmp_path, PYTHONPATH=f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines['selective_scan_cuda'] == 'cannot be imported: OSError: libc10.so: not found'
    assert lines['selective_scan_cuda_core'] == str(tmp_path / 'selective_scan_cuda_core.py')
    assert lines['selective_scan_cuda_oflex'] == 'mmvmamba'


def test_script_that_does_not_exist(tmp_path):
    result = run('nothing.py', folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith("error: script 'nothing.py' does not exist\n")
