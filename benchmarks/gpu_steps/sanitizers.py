"""Step 4: ``sanitize_ops.py`` under the four tools of compute-sanitizer, with each backend."""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import op_inputs
import sanitize_ops
import torch

from gpu_steps.backends import BACKENDS, require
from gpu_steps.build import find_tool
from gpu_steps.context import BENCHMARKS, NEEDS_CUDA, Context, Item, Row, Skip
from gpu_steps.kernels import compile_first

TOOLS = ('memcheck', 'racecheck', 'initcheck', 'synccheck')
#: The last line of ``sanitize_ops.py``.
FINISHED = 'ten calls, all results finite'
REFUSALS = (
    'Device not supported',
    'is not supported on this device',
    'Target application terminated before first instrumented API call',
)


def items(context: Context) -> Iterator[Item]:
    """List the calls without a tool, and the tools."""
    yield compile_first(context, triton_calls)
    for backend in BACKENDS:
        yield f'ten calls, {backend}', functools.partial(run_calls, context, backend)
        for tool in TOOLS:
            yield f'{tool}, {backend}', functools.partial(sanitize, context, tool, backend)


def triton_calls(device: torch.device) -> Iterator[Callable]:
    """Return the calls of the script with Triton."""
    for function, inputs in sanitize_ops.calls(device, 'triton'):
        yield functools.partial(op_inputs.run, function, inputs)


def sanitizer_script(context: Context, backend: str) -> list[str]:
    """Return the command of the ten calls."""
    script = str(BENCHMARKS / 'sanitize_ops.py')
    return [sys.executable, script, '--device', context.device, '--backend', backend]


def run_calls(context: Context, backend: str) -> list[Row]:
    """Run the ten calls without a sanitizer."""
    require(context, backend)
    subprocess.run(sanitizer_script(context, backend), check=True)
    return [{}]


def sanitize(context: Context, tool: str, backend: str) -> list[Row]:
    """Run the ten calls under a tool of compute-sanitizer."""
    if not context.cuda:
        raise Skip(NEEDS_CUDA)
    require(context, backend)
    program = find_tool('compute-sanitizer', 'compute-sanitizer')
    if program is None:
        raise Skip('compute-sanitizer is not installed; it comes with the CUDA toolkit')
    command = [program, '--tool', tool, '--error-exitcode', '86', '--show-backtrace', 'device']
    if tool == 'memcheck':
        # Padding between allocations, so that an overrun does not end in the next one. PyTorch
        # probes optional driver APIs and handles their errors.
        command += ['--padding', '256', '--report-api-errors', 'no']
    # initcheck must also see what PyTorch's kernels write and read.
    if tool != 'initcheck' and backend == 'native':
        command += ['--kernel-name', 'kernel_substring=mmvmamba']
    elif tool != 'initcheck':
        command += ['--kernel-name-exclude', 'kernel_substring=at6native']
    process = subprocess.Popen(
        [*command, *sanitizer_script(context, backend)],
        env=os.environ | dict(PYTORCH_NO_CUDA_MEMORY_CACHING='1'),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        sys.stdout.write(line)
        lines.append(line)
    return [judge_sanitizer(tool, process.wait(), ''.join(lines))]


def judge_sanitizer(tool: str, status: int, output: str) -> Row:
    """Turn a sanitizer's exit status and output into a row.

    Args:
        tool (str): The tool.
        status (int): The exit status.
        output (str): The output of the tool and of the script.
    """
    refusal = next((text for text in REFUSALS if text in output), None)
    if refusal and FINISHED not in output and 'Traceback' not in output:
        return dict(status='skipped', reason=f'compute-sanitizer: {refusal}')
    # A report names the kernel: "at void mmvmamba::forward_kernel<...>(...)+0x4d0".
    places = [line.strip('= ') for line in output.splitlines() if re.match(r'=+ .*\bat ', line)]
    row = dict(reports=len(places))
    if status == 0 and FINISHED in output and re.search(r'SUMMARY: 0 (errors|hazards)', output):
        return row
    reason = places[0] if places else f'{tool} ended with status {status}'
    return row | dict(status='failed', reason=f'{reason}, see log.txt')
