"""When the summaries are logged; test_run_summary.py has their texts."""

from types import SimpleNamespace

import pytest

from mmvmamba.engine import RunSummaryHook, run_summary


@pytest.fixture
def runner(monkeypatch):
    """A stand-in whose parts have no content."""
    for name in ('data', 'model', 'schedule', 'outputs'):
        section = (name.capitalize(), ['x'])
        monkeypatch.setattr(run_summary, name, lambda *args, section=section, **kwargs: section)
    monkeypatch.setattr(
        run_summary, 'results', lambda _, metrics, seconds: [('Best', [str(metrics)])]
    )
    monkeypatch.setattr(run_summary, 'log_file', lambda _: 'run.log')
    messages = []
    dataset = SimpleNamespace(dataset=range(3))
    return SimpleNamespace(
        logger=SimpleNamespace(info=lambda text, extra: messages.append(text)),
        messages=messages,
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
    assert titles(after) == ['Best'] and "{'a': 2}" in after


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
