"""Runs the steps of ``gpu_steps`` within a number of minutes and sums them up.

Each step is a process of its own, so that a crash, a hang or an illegal memory access ends one item
of one step and nothing else. The process writes each result to a file as soon as it has it. A run
that is cut off loses the item in progress; a later run with the same folder skips what is done,
does what is left and then tries again what failed. Results of another GPU, another torch or other
sources are not kept.

This file needs Python alone. `benchmarks/gpu_check.sh` is the command.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_report
from gpu_steps import RESTART, STEPS

ROOT = Path(__file__).resolve().parents[1]
#: How long (seconds) an item may go on after its step's limit.
GRACE = 60
#: A step is not begun with less time (seconds) than this left.
LEAST_SECONDS = 5
EXIT_STATUS = {'passed': 0, 'skipped': 0, 'failed': 1, 'unfinished': 3, 'not run': 3}

#: A step and all that it starts end together. A session of its own, which a step gets with Python
#: 3.10, would outlive a batch system's end of the run.
OWN_GROUP = {'process_group': 0} if sys.version_info >= (3, 11) else {'start_new_session': True}

Record = dict[str, Any]


def package_digest() -> str:
    """A digest of all that the results of a step depend on: the kernels and the package."""
    digest = hashlib.sha256()
    files = [path for path in (ROOT / 'csrc').rglob('*') if path.is_file()]
    files += [
        path
        for path in (ROOT / 'mmvmamba').rglob('*.py')
        if '.mim' not in path.parts and not path.name.startswith('_build_info')
    ]
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def new_record(number: int) -> Record:
    """A step that has not run."""
    return dict(title=STEPS[number].title, status='not run', seconds=0.0, plan=[], done=[], rows=[])


@dataclasses.dataclass
class Ending:
    """How the process of a step ended."""

    status: int  # its exit status, or the negative number of a signal
    killed: str | None  # the reason, where it was killed for the time it took


class Check:
    """The results in a folder, and the runs that add to them.

    Args:
        out (Path): The folder.
        device (str): 'cuda' or 'cpu'.
        minutes (float): How long the run may take.
        command (Sequence[str]): What runs a step, in this file's folder. Defaults to the module
            ``gpu_steps``.

    Raises:
        ValueError: If the folder holds results of another device.
    """

    def __init__(
        self,
        out: Path,
        device: str,
        minutes: float,
        command: Sequence[str] = (sys.executable, '-m', 'gpu_steps'),
    ):
        self.out, self.device, self.command = out, device, command
        self.deadline = time.monotonic() + 60 * minutes
        self.environment: Record | None = None
        self.child: subprocess.Popen | None = None
        out.mkdir(parents=True, exist_ok=True)
        self.results: Record = dict(benchmark='gpu_check', device=device, run={}, steps={})
        if (out / 'results.json').exists():
            self.results = json.loads((out / 'results.json').read_text(encoding='utf-8'))
            if self.results['device'] != device:
                raise ValueError(
                    f'{out} holds results of DEVICE={self.results["device"]}, not of {device}: '
                    'choose another folder'
                )
        for number in STEPS:
            self.results['steps'].setdefault(str(number), new_record(number))
            self.merge_events(number)  # of a run that was killed

    @property
    def left(self) -> float:
        """Seconds left of the run."""
        return self.deadline - time.monotonic()

    def record(self, number: int) -> Record:
        """The results of a step."""
        return self.results['steps'][str(number)]

    def save(self) -> None:
        """Writes ``results.json``, whole or not at all."""
        temporary = self.out / 'results.json.new'
        temporary.write_text(json.dumps(self.results, indent=1) + '\n', encoding='utf-8')
        temporary.replace(self.out / 'results.json')

    def log(self, text: str) -> None:
        """Appends to ``log.txt`` and to the standard output."""
        with open(self.out / 'log.txt', 'a', encoding='utf-8', errors='replace') as file:
            file.write(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    # ---- the order of the steps ------------------------------------------------------------------

    def run(self, numbers: Sequence[int]) -> None:
        """Runs steps until all are done or the time is up."""
        self.log(f'=== gpu_check on {self.device}, {self.left / 60:.1f} minutes, {now()}\n')
        # It takes seconds where the extension is built, and says on which GPU this run is.
        self.results['steps']['1'] = new_record(1)
        self.run_step(1)
        if self.record(1)['status'] != 'passed':
            return
        self.set_environment()
        for number in self.order([number for number in numbers if number != 1]):
            if self.left < LEAST_SECONDS:
                self.log('=== the time is up\n')
                return
            self.run_step(number)

    def set_environment(self) -> None:
        """Takes what the results depend on from step 1, and forgets the results of other ones."""
        rows = {row['item']: row for row in self.record(1)['rows']}
        machine = rows['machine']
        self.results['run'] = machine['run'] | dict(package=rows['extension']['package'])
        keys = ('gpu', 'cpu', 'torch')
        self.environment = {key: machine[key] for key in keys} | dict(sources=package_digest())
        for number in STEPS:
            record = self.record(number)
            if number == 1 or record.get('environment') in (None, self.environment):
                record['environment'] = self.environment
            else:
                self.log(f'=== step {number}: dropped, from another GPU, torch or source\n')
                self.results['steps'][str(number)] = new_record(number)

    def order(self, numbers: Sequence[int]) -> list[int]:
        """Steps with something left, in their order, then those that failed."""
        states = {number: self.state(number)[0] for number in numbers}
        waiting = [n for n in numbers if states[n] in ('not run', 'unfinished')]
        return waiting + [n for n in numbers if states[n] == 'failed']

    def state(self, number: int) -> tuple[str, str]:
        """The status of a step and the reason for it."""
        record = self.record(number)
        count = {
            status: sum(row['status'] == status for row in record['rows'])
            for status in ('passed', 'failed', 'skipped')
        }
        pending = len(set(record['plan']) - set(record['done']))
        if count['failed'] or record.get('error'):
            return 'failed', record.get('error') or f'{count["failed"]} failed'
        if not record['plan']:
            return 'not run', ''
        if pending:
            return 'unfinished', f'{pending} of {len(record["plan"])} left'
        if count['passed']:
            return 'passed', ''
        if self.device == 'cuda' and not STEPS[number].may_skip:
            return 'failed', f'nothing ran: all {count["skipped"]} were skipped'
        return 'skipped', 'all were skipped'

    # ---- a step ----------------------------------------------------------------------------------

    def run_step(self, number: int) -> None:
        """Runs the items of a step that are not done, in one process after the other."""
        step, record = STEPS[number], self.record(number)
        self.log(f'\n=== step {number}: {step.title}\n')
        failed = {row['item'] for row in record['rows'] if row['status'] == 'failed'}
        record['rows'] = [row for row in record['rows'] if row['item'] not in failed]
        record['done'] = [item for item in record['done'] if item not in failed]
        record.pop('error', None)
        record['environment'] = self.environment
        self.save()
        begin = time.monotonic()
        again = True
        while again:
            spent = time.monotonic() - begin
            ending = self.run_child(number, step.limit - spent)
            again = self.merge_events(number, ending)
        record['seconds'] = round(record['seconds'] + time.monotonic() - begin, 1)
        record['status'], record['reason'] = self.state(number)
        self.save()
        self.log(f'=== step {number}: {record["status"]} {record["reason"]}\n')

    def run_child(self, number: int, seconds: float) -> Ending:
        """Runs the process of a step; its output goes to the log.

        Args:
            number (int): The step.
            seconds (float): What is left of the step's limit.
        """
        command = [*self.command, str(number), '--out', str(self.out)]
        command += ['--device', self.device, '--seconds', str(min(seconds, self.left))]
        run_is_shorter = self.left < seconds + GRACE
        limit = self.left if run_is_shorter else seconds + GRACE
        self.child = child = subprocess.Popen(
            command,
            cwd=ROOT / 'benchmarks',
            env=self.child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding='utf-8',
            errors='replace',
            **OWN_GROUP,
        )
        reader = threading.Thread(target=self.read_output, args=(child.stdout,), daemon=True)
        reader.start()
        killed = None
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            killed = 'run' if run_is_shorter else 'step'
        finally:
            self.end_child()
        reader.join(5)
        return Ending(child.returncode, killed)

    def child_environment(self) -> dict[str, str]:
        """The environment of a step: no plugins of pytest, and the package that step 1 chose."""
        env = os.environ | dict(PYTHONUNBUFFERED='1', PYTEST_DISABLE_PLUGIN_AUTOLOAD='1')
        if self.device == 'cuda':
            env['MMVMAMBA_REQUIRE_CUDA'] = '1'
        if self.environment and self.results['run']['package'] == 'source tree':
            paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
            env['PYTHONPATH'] = os.pathsep.join(paths)
        return env

    def read_output(self, stream) -> None:
        """Copies a process's output to the log, line by line."""
        for line in stream:
            self.log(line)

    def end_child(self) -> None:
        """Ends the process of a step, if there is one, with all that it started."""
        child, self.child = self.child, None
        if child is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
                return

    def merge_events(self, number: int, ending: Ending | None = None) -> bool:
        """Moves what a step's process wrote into the results.

        An item that was in progress when its process died has failed, unless the run's time was up.

        Args:
            number (int): The step.
            ending (Ending, optional): How the process ended. Defaults to None: not known, as the
                run itself was killed.

        Returns:
            bool: Whether the step's process must be started again for the items that are left.
        """
        path, record = self.out / f'step{number}.jsonl', self.record(number)
        rows, current, began = [], None, 0.0
        for event in read_events(path):
            if 'plan' in event:
                record['plan'] = event['plan']
            elif 'begin' in event:
                rows, current, began = [], event['begin'], event['time']
            elif 'row' in event:
                rows.append(event['row'])
            elif 'end' in event:
                record['done'].append(current)
                record['rows'] += rows
                current = None
        path.unlink(missing_ok=True)
        again = False
        if ending is not None and ending.killed != 'run' and ending.status != 0:
            again = ending.killed is None and (current is not None or ending.status == RESTART)
            reason = self.why_ended(number, ending, time.time() - began if current else None)
            if current is not None:
                record['done'].append(current)
                record['rows'].append(dict(item=current, status='failed', reason=reason))
            elif ending.status != RESTART:
                record['error'] = reason
        self.save()
        return again

    def why_ended(self, number: int, ending: Ending, seconds: float | None) -> str:
        """Why a process that did not end by itself did so, in words."""
        if ending.killed == 'step':
            return "was not done within the step's limit"
        if seconds is not None and seconds >= STEPS[number].item_seconds:
            return f'took longer than {STEPS[number].item_seconds} s'
        if ending.status < 0:
            return f'the process ended by {signal.Signals(-ending.status).name}, see log.txt'
        return f'the process ended with status {ending.status}, see log.txt'

    # ---- the end ---------------------------------------------------------------------------------

    def summarise(self, numbers: Sequence[int]) -> int:
        """Writes ``summary.json`` and ``summary.md``, and the latter to the standard output.

        Returns:
            int: The exit status, that of the worst of the steps that were asked for.
        """
        for number in STEPS:
            self.merge_events(number)  # of a step that was cut off
            record = self.record(number)
            record['status'], record['reason'] = self.state(number)
        self.save()
        summary = gpu_report.summarise(self.results)
        text = gpu_report.summary_text(self.results)
        (self.out / 'summary.json').write_text(
            json.dumps(summary, indent=1) + '\n', encoding='utf-8'
        )
        (self.out / 'summary.md').write_text(text, encoding='utf-8')
        self.log('\n' + text)
        statuses = {EXIT_STATUS[self.record(number)['status']] for number in numbers}
        return 1 if 1 in statuses else max(statuses)


def read_events(path: Path) -> list[Record]:
    """What a step's process wrote; a last line that was cut off is left out."""
    events = []
    if path.exists():
        for line in path.read_text(encoding='utf-8').splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
    return events


def now() -> str:
    """Date and time (UTC)."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')


# ---- command -------------------------------------------------------------------------------------


def parse_steps(text: str) -> list[int]:
    """'1-3,7' -> [1, 2, 3, 7]; step 1 is always one of them."""
    numbers = {1}
    for part in text.split(','):
        first, _, last = part.partition('-')
        try:
            numbers.update(range(int(first), int(last or first) + 1))
        except ValueError:
            numbers.add(0)
    if not numbers <= set(STEPS):
        raise argparse.ArgumentTypeError(
            f'steps are numbers from 1 to {max(STEPS)}, such as 1-7 or 3,5-6, but got {text!r}'
        )
    return sorted(numbers)


def parse_minutes(text: str) -> float:
    """A positive number."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float('inf'):
        raise argparse.ArgumentTypeError(f'minutes must be a positive number, but got {text!r}')
    return minutes


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('--out', type=Path, required=True, help='the folder of the results')
    add('--device', choices=('cuda', 'cpu'), default='cuda', help='cpu: a rehearsal, small sizes')
    add('--minutes', type=parse_minutes, default=8.0, help='how long the run may take')
    add('--steps', type=parse_steps, default='1-7', help='which steps, such as 1-7 or 3,5-6')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check and returns its exit status."""
    args = parse_args(argv)
    try:
        check = Check(args.out.resolve(), args.device, args.minutes)
    except ValueError as error:
        sys.stderr.write(f'{error}\n')
        return 2

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, stop)
    try:
        check.run(args.steps)
    finally:
        check.end_child()
        status = check.summarise(args.steps)
    return status


if __name__ == '__main__':
    sys.exit(main())
