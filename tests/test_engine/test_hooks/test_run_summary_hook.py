"""When the summaries are logged; test_run_summary.py has their texts."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmvmamba.engine import RunSummaryHook, run_summary


@pytest.fixture
def runner(monkeypatch):
    """A stand-in whose parts have no content."""
    for name in ('data', 'model', 'schedule', 'outputs'):
        section = (name.capitalize(), ['x'])
        monkeypatch.setattr(run_summary, name, lambda *args, section=section, **kwargs: section)
    monkeypatch.setattr(
        run_summary,
        'results',
        lambda _, metrics, seconds, first: [('Best', [f'{metrics} from {first}'])],
    )
    monkeypatch.setattr(run_summary, 'log_file', lambda _: 'run.log')
    messages = []
    dataset = SimpleNamespace(dataset=range(3))
    return SimpleNamespace(
        logger=SimpleNamespace(info=lambda text, extra: messages.append(text)),
        messages=messages,
        iter=8,
        test_loop=SimpleNamespace(dataloader=dataset),
    )


def titles(text):
    return [line.split()[0] for line in text.splitlines() if line[:1].strip()]


def test_training(runner):
    hook = RunSummaryHook()
    hook.before_train(runner)
    hook.after_val_epoch(runner, dict(a=1))
    hook.after_val_epoch(runner, dict(a=2))
    hook.after_run(runner)
    before, after = runner.messages
    assert titles(before) == ['Data', 'Model', 'Schedule', 'Outputs']
    assert titles(after) == ['Best'] and "{'a': 2} from 8" in after


def test_testing(runner):
    hook = RunSummaryHook(outputs=dict(predictions='p.pkl'))
    hook.before_test(runner)
    hook.after_test_epoch(runner, {'mIoU': 50.0})
    hook.after_run(runner)
    before, after = runner.messages
    assert titles(before) == ['Data', 'Model', 'Outputs']
    assert titles(after) == ['Finished', 'Metrics', 'Written']
    for words in ('3 images in 0:00:00', 'mIoU  50.0000', 'predictions: p.pkl', 'log: run.log'):
        assert words in after


def test_time_starts_with_the_stage(runner, monkeypatch):
    now = iter([10.0, 70.0])
    monkeypatch.setattr('time.monotonic', lambda: next(now))
    hook = RunSummaryHook()
    hook.before_test(runner)
    hook.after_run(runner)
    assert '3 images in 0:01:00' in runner.messages[-1]


def test_stream_of_test_images(runner):
    runner.test_loop.dataloader.dataset = iter(range(3))
    hook = RunSummaryHook()
    hook.before_test(runner)
    hook.after_run(runner)
    assert 'stream of images in 0:00:00' in runner.messages[-1]


class Model(BaseModel):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


class Metric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(a=len(results))


def test_validation_by_the_runner_has_no_summary(tmp_path):
    hook = RunSummaryHook()
    runner = Runner(
        Model(),
        str(tmp_path),
        val_dataloader=DataLoader([dict(inputs=torch.zeros(1)) for _ in range(3)]),
        val_cfg=dict(),
        val_evaluator=Evaluator([Metric()]),
        custom_hooks=[hook],
        experiment_name='summary',
    )
    texts = []
    runner.logger.addFilter(lambda record: texts.append(record) or True)
    assert runner.val() == dict(a=3)
    assert not any(getattr(record, 'plain', False) for record in texts)
