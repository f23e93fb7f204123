"""Step 3: the tests of the CUDA kernels. Each test is an item."""

from __future__ import annotations

import faulthandler
import functools
import os
import re
import time

import pytest

from gpu_steps.context import RESTART, ROOT, Context, Row, fail, run_item


class Recorder:
    """A plugin of pytest: one item for each test, and a stop when the time is up.

    Args:
        context (Context): The run.
        item_seconds (int): A test that takes longer ends the process.
    """

    def __init__(self, context: Context, item_seconds: int):
        self.context, self.item_seconds = context, item_seconds
        self.healthy = True
        self.plan: list[str] = []
        self.rows: list[Row] = []
        # pytest captures the standard error.
        self.stderr = os.fdopen(os.dup(2), 'w')

    def pytest_collection_finish(self, session):
        """Writes the plan and leaves out what is done."""
        self.session = session
        self.plan = [item.nodeid for item in session.items]
        self.context.write(plan=self.plan)
        session.items[:] = [i for i in session.items if i.nodeid not in self.context.done]

    def pytest_runtest_logstart(self, nodeid):
        """Begins an item."""
        self.context.write(begin=nodeid, time=time.time())
        self.rows = []
        faulthandler.dump_traceback_later(self.item_seconds, exit=True, file=self.stderr)

    def pytest_runtest_logreport(self, report):
        """Keeps the outcome of a phase of a test."""
        row = dict(item=report.nodeid, status=report.outcome, seconds=round(report.duration, 2))
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.rows.append(row | dict(reason=str(reason).removeprefix('Skipped: ')))
        elif report.failed:
            text = report.longreprtext
            errors = re.findall(r'^E +(.*)$', text, re.MULTILINE) or text.splitlines()[-1:]
            self.rows.append(row | dict(reason=f'{report.when}: {" ".join(errors)[:300]}'))
            self.healthy &= 'CUDA error' not in text
        elif report.when == 'call':
            self.rows.append(row)

    def pytest_runtest_logfinish(self, nodeid):
        """Ends an item: a test may pass and fail in its teardown."""
        faulthandler.cancel_dump_traceback_later()
        for row in sorted(self.rows, key=lambda row: row['status'] != 'failed')[:1]:
            self.context.write(row=row)
        self.context.write(end=nodeid)
        if self.context.time_is_up:
            self.session.shouldstop = 'the time is up'
        elif not self.healthy:
            self.session.shouldstop = 'CUDA cannot be used any more in this process'


def run(context: Context) -> int:
    """Runs the tests of the CUDA kernels in this process, which imports the package of step 1.

    Returns:
        int: The exit status.
    """
    recorder = Recorder(context, context.step.item_seconds)
    arguments = [
        str(ROOT / 'tests/test_ops/test_cuda.py'), f'--rootdir={ROOT}',
        f'--config-file={ROOT / "pyproject.toml"}', '-p', 'no:cacheprovider',
        '-p', 'no:faulthandler', '-m', 'cuda and not slow', '-q', '--tb=short',
    ]  # fmt: skip
    status = int(pytest.main(arguments, plugins=[recorder]))
    if not recorder.plan:
        run_item(context, 'pytest', functools.partial(fail, f'pytest ended with status {status}'))
    return 0 if recorder.healthy else RESTART
