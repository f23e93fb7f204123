"""Step 3: the tests of the kernels on a GPU. Each test is an item."""

import faulthandler
import os
import re
import time
from collections.abc import Sequence

import pytest

from gpu_steps.context import KERNELS, RESTART, ROOT, Context, Row, first_line, logger, run_item

FILES = ('test_ops/test_cuda.py', 'test_ops/test_scan_orders.py', 'test_dropin/test_extensions.py')


class Recorder:
    """Plugin for pytest: record each test as an item and stop at the time limit.

    Args:
        context (Context): The run.
    """

    def __init__(self, context: Context):
        self.context = context
        self.lost: str | None = None
        self.plan: list[str] = []
        self.rows: list[Row] = []
        # pytest captures the standard error.
        self.stderr = os.fdopen(os.dup(2), 'w')
        faulthandler.enable(self.stderr)

    def pytest_collection_finish(self, session):
        """Write the plan and deselect finished tests."""
        self.session = session
        items = {item.nodeid: item for item in session.items}
        self.plan = list(items)
        self.context.write(plan=self.plan)
        session.items[:] = [items[name] for name in self.context.order(items)]

    def pytest_runtest_logstart(self, nodeid):
        """Begin an item."""
        self.context.write(begin=nodeid, time=time.time())
        self.rows = []
        seconds = self.context.step.item_seconds
        faulthandler.dump_traceback_later(seconds, exit=True, file=self.stderr)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        """Fail the test that launched a failing kernel, not the next one."""
        outcome = yield
        self.lost = self.context.device_error()
        if self.lost and outcome.excinfo is None:
            outcome.force_exception(RuntimeError(self.lost))

    def pytest_runtest_logreport(self, report):
        """Keep the outcome of a phase of a test."""
        row = dict(item=report.nodeid, status=report.outcome, seconds=round(report.duration, 2))
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.rows.append(row | dict(reason=str(reason).removeprefix('Skipped: ')))
        elif report.failed:
            text = report.longreprtext
            errors = re.findall(r'^E +(.*)$', text, re.MULTILINE) or text.splitlines()[-1:]
            self.rows.append(row | dict(reason=f'{report.when}: {" ".join(errors)[:300]}'))
        elif report.when == 'call':
            self.rows.append(row)

    def pytest_runtest_logfinish(self, nodeid):
        """End an item: a test may pass and fail in its teardown."""
        faulthandler.cancel_dump_traceback_later()
        for row in sorted(self.rows, key=lambda row: row['status'] != 'failed')[:1]:
            self.context.write(row=row)
        self.context.write(end=nodeid)
        if self.context.time_is_up:
            self.session.shouldstop = 'time limit reached'
        elif self.lost:
            self.session.shouldstop = 'CUDA failed, a new process is needed'


class LaunchRecorder:
    """Plugin for pytest that runs tests only to record their launches.

    Args:
        limit (float): Time limit of a test, in seconds.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.stderr = os.fdopen(os.dup(2), 'w')

    def pytest_collection_modifyitems(self, items):
        """Deselect tests that compile a model or allocate tens of GiB."""
        others = ('test_compiled', 'test_warm_up', 'test_more_than')
        items[:] = [item for item in items if not item.name.startswith(others)]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        """Ignore the outcome: the results are uninitialized."""
        faulthandler.dump_traceback_later(self.limit, exit=True, file=self.stderr)
        outcome = yield
        faulthandler.cancel_dump_traceback_later()
        outcome.force_result(None)


def run(context: Context) -> int:
    """Run the tests in this process.

    Returns:
        int: The exit status.
    """
    recorder = Recorder(context)
    arguments = [
        *(str(ROOT / 'tests' / name) for name in FILES), f'--rootdir={ROOT}',
        f'--config-file={ROOT / "pyproject.toml"}', '-p', 'no:cacheprovider',
        '-p', 'no:faulthandler', '-m', 'cuda and not slow', '-q', '--tb=short',
    ]  # fmt: skip
    if context.cuda and not context.done:
        compile_first(context, [*arguments, '-k', 'triton or test_gpu'])
    status = int(pytest.main(arguments, plugins=[recorder]))
    if not recorder.plan or status not in (0, 1, 2, 5):

        def fail() -> list[Row]:
            raise RuntimeError(f'pytest ended with status {status}, see log.txt')

        run_item(context, 'pytest', fail)
    return RESTART if recorder.lost else 0


def compile_first(context: Context, arguments: Sequence[str]) -> None:
    """Compile the Triton kernels of the tests in parallel; if that fails, the tests do it."""
    from gpu_steps.kernels import compile_calls  # imports torch

    def record_launches() -> None:
        pytest.main(arguments, plugins=[LaunchRecorder(context.step.item_seconds)])

    try:
        logger.info('%s: %s', KERNELS, compile_calls(context, lambda _: [record_launches]))
    except Exception as error:  # the tests must run
        logger.info('%s: %s', KERNELS, first_line(error))
