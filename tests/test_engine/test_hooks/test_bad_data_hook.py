"""Checks of annotations, and counting of bad samples."""

import json
from types import SimpleNamespace

import pytest
from mmdet.datasets import CocoDataset
from mmengine.logging import MessageHub
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from mmvmamba.engine import BadDataHook
from mmvmamba.engine.errors import UserError
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
    )
    cfg = SimpleNamespace(train_dataloader=dict(dataset=dataset))
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


def test_images_without_annotations_are_no_errors(tmp_path):
    """They are logged in one line, with their number and a few names."""
    path = coco_file(tmp_path)
    content = json.loads(open(path).read())
    content['images'] += [
        dict(content['images'][0], id=i, file_name=f'{i}.jpg') for i in range(3, 99)
    ]
    content['annotations'][0]['category_id'] = 7
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    runner, messages = runner_of(
        dict(type=CocoDataset, ann_file=path, metainfo=dict(classes=('cat',)))
    )
    BadDataHook().before_train(runner)
    names = "'2.jpg', '3.jpg', '4.jpg', '5.jpg', '6.jpg' and 92 more"
    error, info = sorted(messages)
    assert error[0] == 'ERROR'
    assert "category_id` is not the `id` of any category: annotation 1 of '0.jpg'" in error[1]
    text = f'{path}: images without annotations (97 times): {names}. They are trained as background'
    assert info == ('INFO', text)


@pytest.mark.parametrize('arguments', [dict(action='ignore'), dict(max_skipped=-1)])
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
    assert messages == [('ERROR', 'skipped at iteration 1: bad')] * max_skipped
    words = f'{max_skipped + 1} bad samples were skipped, more than max_skipped={max_skipped}'
    with pytest.raises(UserError, match=words):
        hook.before_train_iter(runner, 0, batch_of('bad'))


def test_the_number_of_skipped_samples_is_logged():
    hook = BadDataHook()
    runner, messages = runner_of()
    hook.after_train(runner)
    assert not messages
    hook.before_train_iter(runner, 0, batch_of('a', 'b'))
    hook.after_train(runner)
    assert messages[-1] == ('ERROR', '2 bad samples were skipped in this run')


@pytest.mark.parametrize(('images', 'more'), [(5, ''), (6, ' and 1 more')])
def test_the_names_of_harmless_images(images, more, tmp_path):
    """Five names, and the number of others."""
    path = coco_file(tmp_path)
    content = json.loads(open(path).read())
    first = content['images'][0]
    content['images'] = [dict(first, id=i, file_name=f'{i}.jpg') for i in range(images + 2)]
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    runner, messages = runner_of(
        dict(type=CocoDataset, ann_file=path, metainfo=dict(classes=('cat',)))
    )
    BadDataHook(action='stop').before_train(runner)
    names = "'2.jpg', '3.jpg', '4.jpg', '5.jpg', '6.jpg'"
    text = f'{path}: images without annotations ({images} times): {names}{more}. '
    assert messages == [('INFO', f'{text}They are trained as background')]
