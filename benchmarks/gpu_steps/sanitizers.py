"""Step 4: ``sanitize_ops.py`` under the four tools of compute-sanitizer."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu_steps.build import load_setup
from gpu_steps.context import BENCHMARKS, NEEDS_CUDA, Context, Item, Row, Skip

TOOLS = ('memcheck', 'racecheck', 'initcheck', 'synccheck')
SANITIZER_STATUS = 86


def items(context: Context) -> Iterator[Item]:
    """The tools."""
    if not context.cuda:
        yield 'the ten calls alone', lambda: [run_calls(context)]
    for tool in TOOLS:
        yield tool, functools.partial(sanitize, context, tool)


def sanitizer_script(context: Context) -> list[str]:
    """The command of the ten calls."""
    return [sys.executable, str(BENCHMARKS / 'sanitize_ops.py'), '--device', context.device]


def run_calls(context: Context) -> Row:
    """The ten calls without a sanitizer."""
    subprocess.run(sanitizer_script(context), check=True)
    return {}


def find_sanitizer() -> str | None:
    """compute-sanitizer, on the PATH or in the CUDA toolkit."""
    found = shutil.which('compute-sanitizer')
    home = load_setup().find_cuda_home()
    if found or home is None:
        return found
    folders = (Path(home) / 'bin', Path(home) / 'compute-sanitizer')
    return shutil.which('compute-sanitizer', path=os.pathsep.join(map(str, folders)))


def sanitize(context: Context, tool: str) -> list[Row]:
    """Runs the ten calls under a tool of compute-sanitizer."""
    if not context.cuda:
        raise Skip(NEEDS_CUDA)
    program = find_sanitizer()
    if program is None:
        raise Skip('compute-sanitizer is not installed; it comes with the CUDA toolkit')
    command = [program, '--tool', tool, '--error-exitcode', str(SANITIZER_STATUS)]
    command += ['--show-backtrace', 'device']
    if tool == 'memcheck':
        # Room between allocations, so that an overrun does not end in the next one. PyTorch asks
        # the driver for things that may not exist and handles that itself.
        command += ['--padding', '256', '--report-api-errors', 'no']
    if tool != 'initcheck':
        # initcheck has to see the writes of PyTorch's kernels, too.
        command += ['--kernel-name', 'kernel_substring=mmvmamba']
    env = os.environ | dict(PYTORCH_NO_CUDA_MEMORY_CACHING='1')
    done = subprocess.run(
        [*command, *sanitizer_script(context)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
        check=False,
    )  # fmt: skip
    sys.stdout.write(done.stdout)
    return [judge_sanitizer(tool, done.returncode, done.stdout)]


def judge_sanitizer(tool: str, status: int, output: str) -> Row:
    """The row of a sanitizer's run: whether it refused the device, found something, or did not.

    Args:
        tool (str): The tool.
        status (int): The exit status.
        output (str): All that it and the script wrote.
    """
    refused = re.search(r'Device not supported|is not supported on this device', output)
    if 'Traceback' not in output:  # else it was the script that ended early
        early = 'Target application terminated before first instrumented API call'
        refused = refused or re.search(early, output)
    if refused:
        return dict(status='skipped', reason=f'compute-sanitizer: {refused[0]}')
    # A report names the kernel: "at void mmvmamba::scan_kernel<...>(...)+0x4d0".
    places = [line for line in output.splitlines() if re.match(r'=+ .*\bat ', line)]
    ours = [line for line in places if 'mmvmamba' in line]
    row = dict(reports=len(ours), others=len(places) - len(ours))
    if status == 0:
        return row
    if tool == 'initcheck' and status == SANITIZER_STATUS and places and not ours:
        return row  # all of them of PyTorch's own kernels
    reason = ours[0].strip('= ') if ours else f'{tool} ended with status {status}'
    return row | dict(status='failed', reason=f'{reason}, see log.txt')
