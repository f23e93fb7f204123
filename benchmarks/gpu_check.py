"""Run the GPU check's steps within a time limit and summarize them.

Each step is a process of its own, so that a crash, a hang or an illegal memory access ends one item
of one step and nothing else. The process writes each result to a file as soon as it has it. A run
that is interrupted loses the item in progress; a later run with the same folder runs what is left
and then retries what failed. Results from another GPU, PyTorch or source tree are discarded.

Requires only the standard library. ``benchmarks/gpu_check.sh`` is the command.
"""

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import shutil
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
from gpu_steps.context import ROOT, with_package

#: How long (seconds) the end of a step's process may take.
GRACE = 15
#: A step needs more time than this (seconds) to be started.
LEAST_SECONDS = 20
EXIT_STATUS = {'passed': 0, 'skipped': 0, 'failed': 1, 'unfinished': 3, 'not run': 3}
#: Each step is in its own process group, so that its children can be killed with it. Before Python
#: 3.11 that needs a session of its own.
OWN_GROUP = {'process_group': 0} if sys.version_info >= (3, 11) else {'start_new_session': True}

Record = dict[str, Any]


def source_digest(number: int) -> str:
    """Hash the sources that the results of a step depend on."""
    step = STEPS[number]
    patterns = ('csrc/**/*', 'mmvmamba/**/*.py', f'benchmarks/gpu_steps/{step.module}.py')
    digest = hashlib.sha256()
    for path in sorted({path for p in (*patterns, *step.files) for path in ROOT.glob(p)}):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and '/.mim/' not in name and '/_build_info' not in name:
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def new_record(number: int) -> Record:
    """Return the record of a step that has not run."""
    record = dict(title=STEPS[number].title, status='not run', reason='', seconds=0.0)
    return record | dict(plan=[], done=[], interrupted=[], retry=[], rows=[])


@dataclasses.dataclass
class Exit:
    """How the process of a step ended."""

    status: int  # the exit status, or the negative number of a signal
    limit: str | None  # the time limit that killed it, 'run' or 'step', if any


class Check:
    """Results in a folder, and the runs that add to them.

    Args:
        out (Path): The folder.
        device (str): 'cuda' or 'cpu'.
        minutes (float): Time limit of the run.
        command (Sequence[str]): What runs a step, in this file's folder. Defaults to the module
            ``gpu_steps``.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the folder is in use, or holds results of another device or damaged ones.
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
        self.child: subprocess.Popen | None = None
        self.last_line = ''
        out.mkdir(parents=True, exist_ok=True)
        self.log_file = open(out / 'log.txt', 'a', encoding='utf-8', errors='replace')  # noqa: SIM115
        try:
            fcntl.flock(self.log_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'another run is writing to {out}') from None
        self.results = self.load()
        for number in STEPS:
            self.results['steps'].setdefault(str(number), new_record(number))
            self.merge_events(number)  # of a run that was killed

    def load(self) -> Record:
        """Load the results of earlier runs, if there are any."""
        path = self.out / 'results.json'
        if not path.exists():
            return dict(benchmark='gpu_check', device=self.device, run={}, steps={})
        try:
            results = json.loads(path.read_text(encoding='utf-8'))
            device, steps = results['device'], results['steps']
            if not all(new_record(int(n)).keys() <= record.keys() for n, record in steps.items()):
                raise ValueError('an incomplete step')
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path} is not a results file ({error!r}): remove it or choose another folder'
            ) from None
        if device != self.device:
            raise ValueError(
                f'{self.out} holds results of DEVICE={device}, not of {self.device}: '
                'choose another folder'
            )
        return results

    @property
    def left(self) -> float:
        """Seconds left of the run."""
        return self.deadline - time.monotonic()

    def record(self, number: int) -> Record:
        """Return the results of a step."""
        return self.results['steps'][str(number)]

    def save(self) -> None:
        """Write ``results.json`` atomically."""
        temporary = self.out / 'results.json.new'
        temporary.write_text(json.dumps(self.results, indent=1) + '\n', encoding='utf-8')
        temporary.replace(self.out / 'results.json')

    def log(self, text: str) -> None:
        """Write to ``log.txt`` and to the standard output."""
        self.log_file.write(text)
        self.log_file.flush()
        with contextlib.suppress(OSError):  # a closed terminal must not end the run
            sys.stdout.write(text)
            sys.stdout.flush()

    # ---- the order of the steps ------------------------------------------------------------------

    def run(self, numbers: Sequence[int]) -> None:
        """Run steps until all are done or the time limit is reached."""
        self.log(f'=== gpu_check on {self.device}, {self.left / 60:.1f} minutes, {now()}\n')
        # Takes seconds if the extension is built, and tells which GPU this run is on.
        self.results['steps']['1'] = new_record(1)
        self.run_step(1)
        machine = next((row for row in self.record(1)['rows'] if 'run' in row), None)
        if machine is not None:
            self.discard_others(machine)
            self.results['run'] = machine['run']
        if self.record(1)['status'] != 'passed':
            self.log('=== the other steps cannot run: results of theirs are from earlier runs\n')
            return
        for number in self.order([number for number in numbers if number != 1]):
            if self.left < LEAST_SECONDS:
                self.log('=== time limit reached\n')
                return
            self.run_step(number)

    def discard_others(self, machine: Record) -> None:
        """Discard the results of another machine, PyTorch or source tree; keep a copy."""
        # Machines with the same GPU may have different CPUs.
        keys = ('gpu', 'torch') if self.device == 'cuda' else ('cpu', 'torch')
        same = {key: machine[key] for key in keys}
        environments = {number: same | dict(sources=source_digest(number)) for number in STEPS}
        stale = []
        for number, environment in environments.items():
            record = self.record(number)
            used = record['plan'] or record['rows'] or record.get('error')
            if number != 1 and used and record.get('environment') != environment:
                stale.append(number)
        if stale:
            copy = self.out / f'results-{now().replace(":", "")}.json'
            shutil.copy(self.out / 'results.json', copy)
            self.log(f'=== {copy.name}: results of another GPU, PyTorch or source tree\n')
        self.results['steps'] |= {str(number): new_record(number) for number in stale}
        for number, environment in environments.items():
            self.record(number)['environment'] = environment

    def order(self, numbers: Sequence[int]) -> list[int]:
        """Order steps: those with items that have not run, then those with failed ones."""
        waiting = [number for number in numbers if self.pending(number) != 0]
        # An item that does not fit into a run must not keep the other steps from running.
        waiting.sort(key=lambda number: self.pending(number, fresh=True) == 0)
        failed = [number for number in numbers if self.state(number)[0] == 'failed']
        return list(dict.fromkeys(waiting + failed))

    def pending(self, number: int, fresh: bool = False) -> int | None:
        """Count the items of a step that are left; None if they are not known yet.

        Args:
            number (int): The step.
            fresh (bool): Leave out those that a run's time limit interrupted. Defaults to False.
        """
        record = self.record(number)
        if not record['plan']:
            return None
        left = set(record['plan']) - set(record['done'])
        return len(left - set(record['interrupted']) if fresh else left)

    def state(self, number: int) -> tuple[str, str]:
        """Return the status of a step and the reason for it."""
        record = self.record(number)
        count = gpu_report.counts(record)
        pending = self.pending(number)
        if count['failed'] or record.get('error'):
            return 'failed', record.get('error', '')
        if pending is None:
            return 'not run', ''
        if pending:
            return 'unfinished', f'{pending} of {len(record["plan"])} left'
        if count['passed']:
            return 'passed', ''
        if self.device == 'cuda' and not STEPS[number].may_skip:
            return 'failed', f'nothing ran: all {count["skipped"]} items were skipped'
        return 'skipped', ''

    # ---- a step ----------------------------------------------------------------------------------

    def run_step(self, number: int) -> None:
        """Run the items of a step that are left, then those that failed before."""
        step, record = STEPS[number], self.record(number)
        self.log(f'\n=== step {number}: {step.title}\n')
        failed = {row['item'] for row in record['rows'] if row['status'] == 'failed'}
        record['retry'] = sorted(failed)
        record.pop('error', None)
        self.save()
        begin = time.monotonic()
        restart = True
        while restart:
            spent = time.monotonic() - begin
            restart = self.merge_events(number, self.run_child(number, step.limit - spent))
            restart &= time.monotonic() - begin < step.limit and self.left > 0
        record['seconds'] = round(record['seconds'] + time.monotonic() - begin, 1)
        record['status'], record['reason'] = self.state(number)
        self.save()
        self.log(f'=== step {number}: {record["status"]} {record["reason"]}\n')

    def run_child(self, number: int, seconds: float) -> Exit:
        """Run the process of a step; its output goes to the log.

        Args:
            number (int): The step.
            seconds (float): What is left of the step's limit.
        """
        command = [*self.command, str(number), '--out', str(self.out)]
        command += ['--device', self.device, '--seconds', f'{min(seconds, self.left):.3f}']
        # An item that began in time may end.
        longest = seconds + STEPS[number].item_seconds + GRACE
        limit = 'run' if self.left < longest else 'step'
        self.child = child = subprocess.Popen(
            command,
            cwd=ROOT / 'benchmarks',
            env=self.child_environment(number),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding='utf-8',
            errors='replace',
            **OWN_GROUP,
        )
        reader = threading.Thread(target=self.read_output, args=(child.stdout,), daemon=True)
        reader.start()
        try:
            child.wait(self.left if limit == 'run' else longest)
            limit = None
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.end_child()
        reader.join(5)
        return Exit(child.returncode, limit)

    def child_environment(self, number: int) -> dict[str, str]:
        """Return the environment of a step: this source tree, and no plugins for pytest."""
        env = with_package(ROOT) | dict(
            PYTHONUNBUFFERED='1',
            PYTEST_DISABLE_PLUGIN_AUTOLOAD='1',
            MMVMAMBA_REQUIRE_CUDA='1' if self.device == 'cuda' else '0',
            # torch.compile would set it, in the middle of a step.
            TRITON_CACHE_DIR=str(ROOT / 'build' / 'gpu_check' / 'triton'),
        )
        if STEPS[number].threads:
            env |= dict(OMP_NUM_THREADS=str(STEPS[number].threads), OMP_WAIT_POLICY='passive')
        return env

    def read_output(self, stream) -> None:
        """Copy a process's output to the log, line by line."""
        for line in stream:
            self.log(line)
            self.last_line = line.strip() or self.last_line

    def end_child(self) -> None:
        """End the process of a step, if there is one, and its children."""
        child, self.child = self.child, None
        if child is None:
            return
        for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 30)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds)

    def merge_events(self, number: int, ended: Exit | None = None) -> bool:
        """Move what a step's process wrote into the results.

        An item that was in progress when its process died has failed, unless the run's time limit
        was reached.

        Args:
            number (int): The step.
            ended (Exit, optional): How the process ended. Defaults to None, not known.

        Returns:
            bool: Whether the step's process must be restarted for the items that are left.
        """
        path, record = self.out / f'step{number}.jsonl', self.record(number)
        rows, current, began = [], None, 0.0
        for event in read_events(path):
            if 'plan' in event:
                record['plan'] = plan = event['plan']
                record['rows'] = [row for row in record['rows'] if row['item'] in plan]
                for key in ('done', 'interrupted', 'retry'):
                    record[key] = [item for item in record[key] if item in plan]
            elif 'begin' in event:
                rows, current, began = [], event['begin'], event['time']
            elif 'row' in event:
                rows.append(event['row'])
            elif 'end' in event:
                finish_item(record, current, rows)
                current = None
        restart = False
        if ended is not None and ended.limit != 'run' and ended.status != 0:
            restart = ended.limit is None and (current is not None or ended.status == RESTART)
            reason = describe_exit(number, ended, time.time() - began if current else 0.0)
            if current is not None:
                finish_item(record, current, [dict(item=current, status='failed', reason=reason)])
            elif ended.status != RESTART:
                record['error'] = f'{reason}: {self.last_line}'[:300]
        elif current is not None and current not in record['done'] + record['interrupted']:
            record['interrupted'].append(current)
        self.save()
        path.unlink(missing_ok=True)
        return restart

    # ---- the end ---------------------------------------------------------------------------------

    def summarize(self, numbers: Sequence[int]) -> int:
        """Write ``summary.json`` and ``summary.md``, and print the latter.

        Returns:
            int: The exit status, that of the worst of the steps that were asked for.
        """
        for number in STEPS:
            self.merge_events(number)  # of a step that was interrupted
            record = self.record(number)
            record['status'], record['reason'] = self.state(number)
        self.save()
        text = gpu_report.summary_text(self.results)
        summary = json.dumps(gpu_report.summarize(self.results), indent=1)
        (self.out / 'summary.json').write_text(summary + '\n', encoding='utf-8')
        (self.out / 'summary.md').write_text(text, encoding='utf-8')
        statuses = {EXIT_STATUS[self.record(number)['status']] for number in numbers}
        left = 3 in statuses or any(self.pending(number) for number in numbers)
        if not left:
            self.log('\nNothing is left to run.\n')
        elif self.record(1)['status'] == 'passed':
            self.log('\nRun the same command again to continue.\n')
        self.log('\n' + text)
        return 1 if 1 in statuses else max(statuses)


def finish_item(record: Record, item: str, rows: Sequence[Record]) -> None:
    """Replace the rows of an item."""
    record['rows'] = [row for row in record['rows'] if row['item'] != item] + list(rows)
    record['done'] = [name for name in record['done'] if name != item] + [item]
    record['retry'] = [name for name in record['retry'] if name != item]


def describe_exit(number: int, ended: Exit, seconds: float) -> str:
    """Describe why the process of a step ended during an item that had run for some seconds."""
    if ended.limit == 'step':
        return "exceeded the step's time limit"
    if seconds >= STEPS[number].item_seconds:
        return f'took longer than {STEPS[number].item_seconds} s'
    if ended.status < 0:
        return f'the process was killed by {signal.Signals(-ended.status).name}, see log.txt'
    return f'the process ended with status {ended.status}, see log.txt'


def read_events(path: Path) -> list[Record]:
    """Read what a step's process wrote, except for a truncated last line."""
    events = []
    if path.exists():
        for line in path.read_text(encoding='utf-8').splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
    return events


def now() -> str:
    """Return date and time (UTC)."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')


# ---- command -------------------------------------------------------------------------------------


def parse_steps(text: str) -> list[int]:
    """Parse '3,5-6' to [1, 3, 5, 6]; step 1 always runs."""
    numbers = {1}
    for part in text.split(','):
        first, dash, last = part.partition('-')
        try:
            steps = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            steps = ()
        numbers.update(steps or [0])
    if not numbers <= set(STEPS):
        raise argparse.ArgumentTypeError(
            f'steps are numbers from 1 to {max(STEPS)}, such as 1-8 or 3,5-6, but got {text!r}'
        )
    return sorted(numbers)


def parse_minutes(text: str) -> float:
    """Parse a positive number."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float('inf'):
        raise argparse.ArgumentTypeError(f'minutes must be a positive number, but got {text!r}')
    return minutes


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('--out', type=Path, required=True, help='folder for the results')
    add(
        '--device',
        choices=('cuda', 'cpu'),
        default='cuda',
        help='cpu: small sizes, without the CUDA kernels',
    )
    add('--minutes', type=parse_minutes, default=8.0, help='time limit of the run')
    add('--steps', type=parse_steps, default='1-8', help='steps to run, such as 1-8 or 3,5-6')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and return its exit status."""
    args = parse_args(argv)
    try:
        check = Check(args.out.resolve(), args.device, args.minutes)
    except (OSError, ValueError) as error:
        sys.stderr.write(f'{error}\n')
        return 2

    def stop(number: int, frame: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the signal came during another write
            check.log(f'=== interrupted by {signal.Signals(number).name}\n')
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as after nohup
            signal.signal(number, stop)
    try:
        check.run(args.steps)
    finally:
        check.end_child()
        status = check.summarize(args.steps)
    return status


if __name__ == '__main__':
    sys.exit(main())
