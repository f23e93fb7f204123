"""Removal of old checkpoints; test_resume_hook.py tests their content."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

from mmvmamba.engine import AtomicCheckpointHook
from mmvmamba.engine.atomic_io import AtomicBackend
from mmvmamba.engine.hooks.atomic_checkpoint_hook import DeferredRemoval


def test_deferred_removal(tmp_path):
    """Files stay until the flush, and longer if they were written again."""
    paths = [str(tmp_path / name) for name in 'ab']
    for path in paths:
        AtomicBackend().put(b'', path)
    backend = DeferredRemoval(AtomicBackend())
    for path in paths:
        backend.remove(path)
        assert backend.isfile(path)
    backend.flush(keep={paths[0]})
    assert os.listdir(tmp_path) == ['a']


def test_folders_are_removed_as_well(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    backend = DeferredRemoval(AtomicBackend())
    backend.rmtree(str(tmp_path / 'a'))
    backend.remove(str(tmp_path / 'never there'))
    backend.flush(keep=set())
    assert os.listdir(tmp_path) == []


class Runner(SimpleNamespace):
    """Save empty files, and record the content of the folder before each."""

    def __init__(self, work_dir):
        super().__init__(work_dir=str(work_dir), iter=0, epoch=0, _resume=False)
        self.message_hub = MessageHub('checkpoints')
        self.logger = SimpleNamespace(info=print)
        self.listed = []

    def save_checkpoint(self, folder, name, *args, **kwargs):
        self.listed.append(sorted(path.name for path in Path(folder).glob('*.pth')))
        Path(folder, name).touch()


@pytest.mark.parametrize('keep', [1, 2])
def test_the_oldest_goes_after_the_newest_is_whole(tmp_path, keep):
    runner = Runner(tmp_path)
    hook = AtomicCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=keep)
    hook.before_train(runner)
    for runner.iter in range(4):
        hook.after_train_iter(runner, runner.iter)
    names = [f'iter_{i}.pth' for i in range(1, 5)]
    assert runner.listed == [names[max(i - keep, 0) : i] for i in range(4)]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == names[-keep:]
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / names[-1])


def test_an_interrupted_checkpoint_is_replaced(tmp_path):
    runner = Runner(tmp_path)
    (tmp_path / '.iter_1.pth.writing').touch()  # of a process that was killed
    hook = AtomicCheckpointHook(interval=1, by_epoch=False)
    hook.before_train(runner)
    assert not os.listdir(tmp_path)
    path = hook.save_interrupted(runner, dict(epoch=0, iter=1))
    assert path == str(tmp_path / 'interrupted.pth')
    assert (tmp_path / 'last_checkpoint').read_text() == path
    hook.after_train_iter(runner, 0)
    assert runner.listed[-1] == ['interrupted.pth']
    assert sorted(os.listdir(tmp_path)) == ['iter_1.pth', 'last_checkpoint']
