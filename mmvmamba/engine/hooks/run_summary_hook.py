"""Summaries before the first step and after the last one."""

import time
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook

from mmvmamba.engine import run_summary
from mmvmamba.engine.console import log_plain
from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class RunSummaryHook(Hook):
    """Log data, model, schedule and outputs before the first step, and the results at the end.

    Args:
        outputs (Mapping[str, str], optional): Further files and folders that a test writes, by the
            kind of their content. Defaults to None.
    """

    priority = 'LOWEST'  # after hooks that load, resume and save

    def __init__(self, outputs: Mapping[str, str] | None = None) -> None:
        self.outputs = dict(outputs or {})
        self._start = 0.0
        self._first_iteration = 0
        self._metrics: Mapping[str, Any] = {}
        self._stage = ''

    def before_train(self, runner: Any) -> None:
        self._begin('train')
        self._first_iteration = runner.iter
        self._log(
            runner,
            run_summary.data(runner, 'train', 'val'),
            run_summary.model(runner),
            run_summary.schedule(runner),
            run_summary.outputs(runner),
        )

    def before_test(self, runner: Any) -> None:
        self._begin('test')
        sections = run_summary.data(runner, 'test'), run_summary.model(runner)
        self._log(runner, *sections, run_summary.outputs(runner, checkpoints=False))

    def _begin(self, stage: str) -> None:
        self._stage, self._metrics, self._start = stage, {}, time.monotonic()

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._metrics = metrics or {}

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._metrics = metrics or {}

    def after_run(self, runner: Any) -> None:
        """Log the results of a training or test run; a validation has no summary."""
        stage, self._stage = self._stage, ''
        seconds = time.monotonic() - self._start
        if stage == 'train':
            sections = run_summary.results(runner, self._metrics, seconds, self._first_iteration)
            self._log(runner, *sections)
        elif stage == 'test':
            self._log(runner, *self._test_results(runner, seconds))

    def _test_results(self, runner: Any, seconds: float) -> list[run_summary.Section]:
        done = run_summary.size(runner.test_loop.dataloader.dataset)
        written = [f'{kind}: {run_summary.short_path(path)}' for kind, path in self.outputs.items()]
        return [
            ('Finished', [f'{done} in {run_summary.duration(seconds)}']),
            ('Metrics', run_summary.metric_table(self._metrics)),
            ('Written', [*written, f'log: {run_summary.log_file(runner)}']),
        ]

    def _log(self, runner: Any, *sections: run_summary.Section) -> None:
        text, attention = run_summary.layout(sections)
        log_plain(runner.logger, f'{text}\n', attention)
