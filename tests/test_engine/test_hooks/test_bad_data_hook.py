"""Checks of annotations, and counting of bad samples."""

import logging
from types import SimpleNamespace

import pytest
from mmdet.datasets import CocoDataset
from mmengine.logging import MessageHub
from mmengine.structures import BaseDataElement
from PIL import Image
from torch.utils.data import DataLoader

from mmvmamba.engine import BadDataHook
from mmvmamba.engine.checks.report import SEVERITIES, Report
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.hooks import bad_data_hook
from mmvmamba.engine.hooks.bad_data_hook import check_loaded_samples

from ..test_checks.datasets import coco_file
from ..test_data.bad_samples import Samples


def test_the_check_stands_behind_the_loaders_once():
    dataset = Samples()
    for _ in range(2):
        check_loaded_samples(dataset)
    steps = dataset.pipeline.transforms
    assert [type(step).__name__ for step in steps[:3]] == ['LoadNothing'] * 2 + ['CheckSample']
    assert len(steps) == 4
    assert steps[2].num_classes == 2


class EagerIterator:
    """Iterator as in MMEngine: its constructor starts the workers."""

    def __init__(self, loader):
        self._iterator = iter(loader)


def runner_of(dataset=None, loop=None):
    """Stand-in for a runner, and the messages it logs."""
    messages = []
    logger = SimpleNamespace(
        info=lambda text: messages.append(('INFO', text)),
        error=lambda text: messages.append(('ERROR', text)),
        log=lambda level, text: messages.append((logging.getLevelName(level), text)),
    )
    cfg = dict(train_dataloader=dict(dataset=dataset))
    loader = getattr(loop, 'dataloader', None) or SimpleNamespace(dataset=Samples())
    runner = SimpleNamespace(
        cfg=cfg, logger=logger, train_loop=loop, train_dataloader=loader, iter=0
    )
    runner.message_hub = MessageHub('bad data')
    return runner, messages


@pytest.mark.parametrize('workers', [0, 1])
def test_a_loop_that_has_begun_to_read(workers):
    """Without ResumeHook, which would replace the loader."""
    loader = DataLoader(
        Samples(), batch_size=8, num_workers=workers, collate_fn=lambda batch: batch
    )
    loop = SimpleNamespace(dataloader=loader, dataloader_iterator=EagerIterator(loader))
    BadDataHook().before_train(runner_of(loop=loop)[0])
    batch = next(loop.dataloader_iterator._iterator)
    bad = [i for i, sample in enumerate(batch) if 'bad_samples' in sample['data_samples'].metainfo]
    assert bad == [3, 4]


@pytest.fixture
def checked(monkeypatch):
    """A report with a problem of each severity, and the arguments of the checks."""
    calls = []

    def check(cfg, stages, sample, warn_only, skip):
        calls.append((stages, sample, warn_only, skip))
        report = Report()
        for severity in SEVERITIES:
            report.add(severity, 'a.json', f'an {severity}')
        report.add('error', 'b.json', 'an error')
        return report

    monkeypatch.setattr(bad_data_hook, 'check_datasets', check)
    return calls


MESSAGES = [
    ('INFO', 'checking the data'),
    ('ERROR', 'a.json: an error'),
    ('ERROR', 'b.json: an error'),
    ('WARNING', 'a.json: an warning'),
    ('INFO', 'a.json: an note'),
]


def test_errors_in_the_data_stop_a_run_before_its_first_step(checked):
    runner, messages = runner_of()
    words = r'a\.json: an error; see the log for all 2 errors \(to train anyway, set .*check=warn'
    with pytest.raises(UserError, match=words):
        BadDataHook(sample=None).before_train(runner)
    assert messages == MESSAGES
    assert checked == [(('train', 'val', 'test'), None, ('test',), True)]


def test_errors_in_the_data_are_logged_once(checked):
    runner, messages = runner_of()
    hook = BadDataHook(check='warn', action='stop', sample=5)
    hook.check_data(runner, 'test')  # as tools do before the datasets are built
    hook.before_train(runner)
    assert messages == MESSAGES
    assert checked == [(('test',), 5, (), False)]


def test_data_is_not_checked(checked):
    BadDataHook(check=None).before_train(runner_of()[0])
    assert not checked


def test_images_without_annotations_are_no_errors(tmp_path):
    leaf = dict(
        type=CocoDataset,
        ann_file=coco_file(tmp_path),
        metainfo=dict(classes=('cat',)),
        data_prefix=dict(img=str(tmp_path)),
    )
    for i in range(3):
        Image.new('RGB', (40, 30)).save(tmp_path / f'{i}.jpg')
    runner, messages = runner_of(leaf)
    BadDataHook().before_train(runner)
    _, (level, text) = messages
    assert level == 'INFO'
    assert "image has no annotations: '2.jpg'" in text


@pytest.mark.parametrize(
    'arguments',
    [dict(action='ignore'), dict(max_skipped=-1), dict(check='maybe'), dict(sample=-1)],
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        BadDataHook(**arguments)


def batch_of(*messages):
    return dict(data_samples=[BaseDataElement(metainfo=dict(bad_samples=list(messages)))])


@pytest.mark.parametrize('max_skipped', [0, 3])
def test_as_many_as_max_skipped_are_skipped(max_skipped):
    """The run stops at the next one."""
    hook = BadDataHook(max_skipped=max_skipped)
    runner, messages = runner_of()
    for _ in range(max_skipped):
        hook.before_train_iter(runner, 0, batch_of('bad'))
    hook.before_train_iter(runner, 0, batch_of())
    assert messages == [('ERROR', 'iteration 1: skipped bad')] * max_skipped
    words = f'skipped {max_skipped + 1} bad samples, more than max_skipped={max_skipped}'
    with pytest.raises(UserError, match=words):
        hook.before_train_iter(runner, 0, batch_of('bad'))


def test_the_number_of_skipped_samples_is_logged():
    hook = BadDataHook()
    runner, messages = runner_of()
    hook.after_train(runner)
    assert not messages
    hook.before_train_iter(runner, 0, batch_of('a', 'b'))
    hook.after_train(runner)
    assert messages[-1] == ('ERROR', 'skipped 2 bad samples in this run')
