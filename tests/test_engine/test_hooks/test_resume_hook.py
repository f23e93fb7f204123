"""Interrupted and resumed runs of MMEngine's runners, in this process."""

import argparse
import copy
import errno
import io
import logging
import os
import signal
import uuid
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch.utils.data import Dataset

from mmvmamba.engine import cli
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.hooks import resume_hook
from mmvmamba.engine.runner import build_runner
from mmvmamba.models.loading import use_safe_loader

SAFETY = Config.fromfile(Path(__file__).parents[3] / 'configs' / '_base_' / 'safety.py').safety
#: Two batches of two numbers in an epoch.
CONFIG = dict(
    model=dict(type='ResumedModel'),
    train_dataloader=dict(
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(type='ResumedNumbers'),
    ),
    val_dataloader=dict(
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='ResumedNumbers'),
    ),
    val_evaluator=dict(type='ResumedScore'),
    val_cfg=dict(),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
    train_cfg=dict(by_epoch=True, max_epochs=3),
    default_hooks={name: dict(SAFETY[name]) for name in SAFETY if name != 'bad_data'},
    env_cfg=dict(dist_cfg=dict(backend='gloo')),
)
CONFIG['default_hooks']['checkpoint']['interval'] = 1
BY_ITERATION = {
    'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=6, val_interval=2),
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 2,
}
FLEXIBLE = dict(runner_type='FlexibleRunner', strategy=dict(type='SingleDeviceStrategy'))
RUNNERS = pytest.mark.parametrize('runner', [{}, FLEXIBLE], ids=['runner', 'flexible'])


@DATASETS.register_module()
class ResumedNumbers(Dataset):
    metainfo = dict(classes=('a',))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([float(index)]))


@MODELS.register_module()
class ResumedModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode):
        output = self.layer(torch.stack(list(inputs)))
        return dict(loss=output.square().mean()) if mode == 'loss' else [output]


@METRICS.register_module()
class ResumedScore(BaseMetric):
    scores = ()

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(acc=self.scores.pop(0) if self.scores else 0.0)


@HOOKS.register_module()
class StopThere(Hook):
    """End a run abruptly, before an iteration or in a validation, or send SIGTERM."""

    priority = 'LOWEST'

    def __init__(self, train=None, val=None, sigterm=False):
        self.train, self.val, self.sigterm = train, val, sigterm

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.train:
            raise KeyboardInterrupt

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.val:
            if not self.sigterm:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)


@HOOKS.register_module()
class RecordBatches(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.batches = getattr(runner, 'batches', {})
        runner.batches[runner.iter] = torch.stack(list(data_batch['inputs'])).flatten().tolist()


@pytest.fixture
def train(tmp_path):
    """Train in a work directory as ``tools/train.py`` does, and return the runner."""
    use_safe_loader()

    def train(*parts, resumed='auto', stop=None, scores=()):
        cfg = Config(copy.deepcopy(CONFIG))
        for part in copy.deepcopy(parts):
            cfg.merge_from_dict(part)
        cfg.work_dir, cfg.experiment_name = str(tmp_path / 'run'), uuid.uuid4().hex
        cfg.custom_hooks = [dict(type='StopThere', **(stop or {}))]
        cli.resume_from(cfg, resumed)
        ResumedScore.scores = list(scores)
        runner = build_runner(cfg)
        runner.said = io.StringIO()
        runner.logger.addHandler(logging.StreamHandler(runner.said))
        if stop is None:
            runner.train()
        else:
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                runner.train()
        return runner

    return train


def content(path):
    return torch.load(path, weights_only=False)


def named(work_dir):
    return Path((work_dir / 'last_checkpoint').read_text())


@RUNNERS
def test_where_a_run_begins(runner, train, tmp_path):
    """From ``load_from`` if there is no checkpoint, else from the last complete one."""
    weights = {'layer.weight': torch.tensor([[5.0]]), 'layer.bias': torch.tensor([6.0])}
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    options = {'load_from': str(tmp_path / 'weights.pth'), 'optim_wrapper.optimizer.lr': 0.0}
    first = train(runner, options)
    assert 'no checkpoint to resume from' in first.said.getvalue()
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, weights[name])
    # The pointer is right, the file is not.
    (tmp_path / 'run' / 'epoch_3.pth').write_bytes(b'half')
    assert named(tmp_path / 'run').name == 'epoch_3.pth'
    second = train(runner, options, stop=dict(train=4))
    assert 'no checkpoint' not in second.said.getvalue()
    assert second._load_from == str(tmp_path / 'run' / 'epoch_2.pth')
    assert second.epoch == 2


@RUNNERS
@pytest.mark.parametrize('by', [{}, BY_ITERATION], ids=['epochs', 'iterations'])
def test_what_a_checkpoint_counts(runner, by, train, tmp_path):
    """Also for one saved in a validation: after a signal, and for a new best score."""
    options = {'default_hooks.checkpoint.save_best': 'acc'}
    train(runner, by, options, scores=[0.1], stop=dict(val=4, sigterm=True))
    epochs = 0 if by else 1
    counts = {p.name: content(p)['meta'] for p in (tmp_path / 'run').glob('*.pth')}
    counts = {name: (meta['epoch'], meta['iter']) for name, meta in counts.items()}
    name, first, second = ('iter', 2, 4) if by else ('epoch', 1, 2)
    assert counts == {
        f'{name}_{first}.pth': (epochs, 2),
        f'{name}_{second}.pth': (2 * epochs, 4),
        f'best_acc_{name}_{first}.pth': (epochs, 2),
        'interrupted.pth': (2 * epochs, 4),
    }
    last = train(runner, by, options, scores=[0.2])
    assert 'running the missing validation after iteration 4' in last.said.getvalue()
    assert last.iter == 6 and last.epoch == 3 * epochs


@RUNNERS
@pytest.mark.parametrize('by', [{}, BY_ITERATION], ids=['epochs', 'iterations'])
@pytest.mark.parametrize('done', range(1, 6))
def test_the_batches_of_a_resumed_run(runner, by, done, train, tmp_path):
    """Of a finite sampler, which shuffles each epoch in another way."""
    options = {
        'default_hooks.record': dict(type='RecordBatches'),
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': 1,
        'randomness.seed': 3,
        'val_cfg': None,
        'val_dataloader': None,
        'val_evaluator': None,
    }
    whole = train(runner, by, options)
    epochs = [sorted(whole.batches[i] + whole.batches[i + 1]) for i in (0, 2, 4)]
    assert epochs == [[0, 1, 2, 3]] * 3
    assert whole.batches[0] != whole.batches[2]
    begin = str(tmp_path / 'run' / f'iter_{done}.pth')
    resumed = train(runner, by, options, resumed=begin)
    assert resumed.batches == {i: whole.batches[i] for i in range(done, 6)}


@pytest.mark.parametrize('sigterm', [False, True])
def test_the_best_score_of_a_validation_that_is_repeated(sigterm, train, tmp_path):
    """A checkpoint holds it before the validation counts as done."""
    options = {'default_hooks.checkpoint.save_best': 'acc'}
    if sigterm:  # interrupted.pth is then all that there is
        options['default_hooks.checkpoint.interval'] = 2
    train(options, stop=dict(val=2, sigterm=sigterm))
    train(options, scores=[0.9], stop=dict(train=2))
    assert train(options, scores=[0.5, 0.6]).message_hub.get_info('best_score') == 0.9
    assert [p.name for p in (tmp_path / 'run').glob('best*')] == ['best_acc_epoch_1.pth']
    assert not (tmp_path / 'run' / 'interrupted.pth').exists()


def test_a_validation_of_iterations_that_are_done_again(train, tmp_path):
    """``last_validation`` belongs to a run that was resumed from the same checkpoint before."""
    train()
    assert (tmp_path / 'run' / 'last_validation').read_text() == '6'
    begin = str(tmp_path / 'run' / 'epoch_1.pth')
    train(resumed=begin, stop=dict(val=4))
    last = train(resumed=str(tmp_path / 'run' / 'epoch_2.pth'))
    assert 'running the missing validation after iteration 4' in last.said.getvalue()


@RUNNERS
def test_no_room_for_the_name_of_the_last_checkpoint(runner, train, tmp_path, monkeypatch):
    """``last_checkpoint`` is unchanged, and the newer checkpoint is found in its own folder."""
    options = {'default_hooks.checkpoint.out_dir': str(tmp_path / 'elsewhere')}
    folder = tmp_path / 'elsewhere' / 'run'
    train(runner, options, stop=dict(train=2))
    assert named(tmp_path / 'run') == folder / 'epoch_1.pth'

    def rename(source, target, replace=os.replace):
        if os.path.basename(target) == 'last_checkpoint':
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', rename)
        with pytest.raises(UserError, match=r"last_checkpoint' cannot be written: No space"):
            train(runner, options)
    assert named(tmp_path / 'run') == folder / 'epoch_1.pth'
    (tmp_path / 'run' / 'last_checkpoint').write_text('')  # what MMEngine's own hook may leave
    assert train(runner, options)._load_from == str(folder / 'epoch_2.pth')


def test_other_processes_and_batches(train, monkeypatch):
    """The same number of samples in a step is not enough for the same run."""
    train(stop=dict(train=3))
    same = train(stop=dict(train=3))
    assert 'bit-exact' not in same.said.getvalue()
    options = {'train_dataloader.batch_size': 1}
    monkeypatch.setattr(resume_hook, 'get_world_size', lambda: 2)
    words = (
        'saved with 1 process(es) and a batch size of 2, but this run has 2 and 1: training '
        'continues with the same sample order, but is not bit-exact'
    )
    assert words in train(options, stop=dict(train=3)).said.getvalue()
    monkeypatch.undo()
    words = 'this run has 1 and 1: training continues from the same sample, but is not bit-exact'
    assert words in train(options, stop=dict(train=3)).said.getvalue()


@RUNNERS
def test_other_batches_with_accumulated_gradients(runner, train):
    """MMEngine would scale the last gradients by another number of iterations, or fail."""
    options = {'optim_wrapper.accumulative_counts': 2}
    train(runner, options, stop=dict(train=3))
    with pytest.raises(UserError, match='only be resumed with the same total batch size'):
        train(runner, options, {'train_dataloader.batch_size': 1})


# ---- settings that differ from those of the checkpoint ----

ADAMW = {'optim_wrapper.optimizer': dict(_delete_=True, type='AdamW', lr=0.1, weight_decay=0.2)}
WARM_UP = dict(param_scheduler=[dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=3)])


def groups(runner):
    return runner.optim_wrapper.optimizer.param_groups


@RUNNERS
@pytest.mark.parametrize('named', [False, True], ids=['auto', 'named'])
def test_changed_hyper_parameters_are_said(runner, named, train, tmp_path):
    train(runner, ADAMW, stop=dict(train=3))
    resumed = str(tmp_path / 'run' / 'epoch_1.pth') if named else 'auto'
    same = train(runner, ADAMW, resumed=resumed, stop=dict(train=3))
    assert 'in the config' not in same.said.getvalue()
    changes = {'optim_wrapper.optimizer.lr': 0.05, 'optim_wrapper.optimizer.weight_decay': 0.0}
    other = train(runner, ADAMW, changes, resumed=resumed, stop=dict(train=3))
    for words in (
        'the learning rate is 0.1 in the checkpoint and 0.05 in the config; the checkpoint',
        'the weight decay is 0.2 in the checkpoint and 0 in the config; the checkpoint',
        'add --cfg-options default_hooks.resume.override=lr',
    ):
        assert words in other.said.getvalue()
    assert (groups(other)[0]['lr'], groups(other)[0]['weight_decay']) == (0.1, 0.2)


@RUNNERS
@pytest.mark.parametrize('override', ['lr', ['lr', 'weight_decay']])
def test_the_schedule_goes_on_from_the_new_learning_rate(runner, override, train):
    """As NonFiniteLossHook advises."""
    train(runner, ADAMW, WARM_UP, stop=dict(train=3))
    changes = {
        'optim_wrapper.optimizer.lr': 0.01,
        'optim_wrapper.optimizer.weight_decay': 0.0,
        'default_hooks.resume.override': override,
    }
    other = train(runner, ADAMW, WARM_UP, changes, stop=dict(train=4))
    assert "and 0.01 in the config; the config's is used" in other.said.getvalue()
    group = groups(other)[0]
    assert group['initial_lr'] == 0.01
    assert group['weight_decay'] == (0.2 if override == 'lr' else 0.0)
    end = train(runner, ADAMW, WARM_UP, changes)
    assert groups(end)[0]['lr'] == pytest.approx(0.01)  # the warm-up has ended


def test_unknown_overrides_are_refused():
    with pytest.raises(
        ValueError, match=r"override must be one or more of \['lr', 'weight_decay'\], but got"
    ):
        resume_hook.ResumeHook(override=['lr', 'betas'])


@RUNNERS
@pytest.mark.parametrize('is_old', [False, True])
def test_another_optimizer_is_refused(runner, is_old, train, tmp_path):
    train(runner, ADAMW, stop=dict(train=3))
    path = named(tmp_path / 'run')
    if is_old:  # saved by MMEngine alone
        saved = content(path)
        del saved['meta']['optimizers']
        torch.save(saved, path)
    name = 'a different optimizer' if is_old else 'AdamW'
    with pytest.raises(UserError, match=f'was saved with {name}, but the config has SGD; .*load_'):
        train(runner)


@RUNNERS
def test_another_seed_is_said(runner, train):
    train(runner, dict(randomness=dict(seed=3)), stop=dict(train=3))
    other = train(runner, dict(randomness=dict(seed=4)), stop=dict(train=3))
    words = "the seed is 3 in the checkpoint and 4 in the config; the checkpoint's is used"
    assert words in other.said.getvalue()
    same = train(runner, dict(randomness=dict(seed=3)), stop=dict(train=3))
    assert 'the seed is' not in same.said.getvalue()


@RUNNERS
def test_the_seed_of_a_checkpoint_without_position(runner, train, tmp_path):
    """As MMEngine saves it: the data goes on in the same order."""
    options = {
        'default_hooks.record': dict(type='RecordBatches'),
        'default_hooks.checkpoint': dict(BY_ITERATION_HOOK),
    }
    whole = train(runner, options, dict(randomness=dict(seed=3)))
    saved = content(tmp_path / 'run' / 'iter_3.pth')
    del saved['meta']['position']
    torch.save(saved, tmp_path / 'x.pth')
    for seed in (3, 4, None):
        other = dict(randomness=dict(seed=seed))
        resumed = train(runner, options, other, resumed=str(tmp_path / 'x.pth'))
        assert resumed.batches == {i: whole.batches[i] for i in range(3, 6)}


@RUNNERS
def test_another_number_of_samples_is_said(runner, train, monkeypatch):
    options = {'default_hooks.checkpoint': dict(BY_ITERATION_HOOK)}
    train(runner, options, stop=dict(train=1))
    monkeypatch.setattr(ResumedNumbers, '__len__', lambda self: 2)
    words = 'had 4 samples and now has 2: 0 batches remain in epoch 1, and later epochs use all'
    assert words in train(runner, options, stop=dict(train=2)).said.getvalue()


BY_ITERATION_HOOK = dict(type='mmvmamba.AtomicCheckpointHook', by_epoch=False, interval=1)


@RUNNERS
@pytest.mark.parametrize(
    'change',
    [
        lambda saved: saved['meta'].pop('epoch'),
        lambda saved: saved.update(meta=5),
        lambda saved: saved.update(message_hub=5),
        lambda saved: saved.update(optimizer=[]),
        lambda saved: saved['optimizer'].pop('param_groups'),
        lambda saved: saved['meta'].update(position=5),
        lambda saved: saved['meta']['position'].update(epoch='1'),
        lambda saved: saved['meta']['position'].update(samples=None),
        lambda saved: saved['meta']['position'].update(done=[(2, -1)]),
        lambda saved: saved['meta']['position'].update(done=[(0, 1)]),
        lambda saved: saved['meta']['position'].update(done=[5]),
        lambda saved: saved['meta']['position'].pop('done'),
        lambda saved: saved['meta']['position'].pop('seed'),
        lambda saved: saved['meta'].update(optimizers='AdamW'),
        lambda saved: saved['meta'].update(optimizers=[5]),
        lambda saved: saved.update(gradients=[torch.ones(1)]),
        lambda saved: saved.update(gradients={'layer.weight': 5}),
        lambda saved: saved.update(gradients={'layer.weight': torch.ones(2)}),
        lambda saved: saved.update(gradients={'layer.weight': torch.ones(1, 1).half()}),
    ],
    ids='epoch meta message_hub optimizer groups position position.epoch position.samples '
    'done.batches done.size done.pair done position.seed optimizers optimizer.name gradients '
    'gradient gradient.shape gradient.dtype'.split(),
)
def test_a_named_checkpoint_with_another_content(runner, change, train, tmp_path):
    train(runner, ADAMW, stop=dict(train=3))
    saved = content(named(tmp_path / 'run'))
    change(saved)
    torch.save(saved, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'(resume from )?checkpoint .*x\.pth.(: | .* must)'):
        train(runner, ADAMW, resumed=str(tmp_path / 'x.pth'))


# ---- the work directory ----


@RUNNERS
def test_what_a_kill_left_over_is_removed_at_the_next_save(runner, train, tmp_path):
    options = {'default_hooks.checkpoint': dict(BY_ITERATION_HOOK, max_keep_ckpts=1)}
    folder = tmp_path / 'run'
    train(runner, options, stop=dict(train=2))
    own = content(folder / 'iter_2.pth')
    own['meta']['iter'] = 1
    torch.save(own, folder / 'iter_1.pth')  # killed before its removal
    own['meta']['run'] = 'another one'
    torch.save(own, folder / 'iter_0.pth')
    (folder / 'iter_00.pth').write_text('no checkpoint')
    train(runner, options, stop=dict(train=3))
    names = sorted(path.name for path in folder.glob('*.pth'))
    assert names == ['iter_0.pth', 'iter_00.pth', 'iter_3.pth']


@RUNNERS
def test_checkpoints_that_were_kept_are_not_left_over(runner, train, tmp_path):
    """``max_keep_ckpts`` counts from the run on that sets it."""
    options = {'default_hooks.checkpoint': dict(BY_ITERATION_HOOK)}
    train(runner, options, stop=dict(train=4))
    options = {'default_hooks.checkpoint': dict(BY_ITERATION_HOOK, max_keep_ckpts=1)}
    train(runner, options)
    names = sorted(path.name for path in (tmp_path / 'run').glob('*.pth'))
    assert names == ['iter_1.pth', 'iter_2.pth', 'iter_3.pth', 'iter_4.pth', 'iter_6.pth']


@RUNNERS
def test_checkpoints_that_a_run_in_between_kept(runner, train, tmp_path):
    every = {'default_hooks.checkpoint': dict(BY_ITERATION_HOOK)}
    last = {'default_hooks.checkpoint': dict(BY_ITERATION_HOOK, max_keep_ckpts=1)}
    train(runner, last, stop=dict(train=2))
    train(runner, every, stop=dict(train=4))
    train(runner, last)
    names = sorted(path.name for path in (tmp_path / 'run').glob('*.pth'))
    assert names == ['iter_2.pth', 'iter_3.pth', 'iter_4.pth', 'iter_6.pth']


def test_a_kill_before_a_second_removal(train, tmp_path):
    """A checkpoint names both files, and no others go."""
    options = {'default_hooks.checkpoint': dict(BY_ITERATION_HOOK, max_keep_ckpts=1)}
    folder = tmp_path / 'run'
    train(options, stop=dict(train=2))
    own = content(folder / 'iter_2.pth')
    own['meta']['iter'] = 1
    torch.save(own, folder / 'iter_1.pth')
    train(options, stop=dict(train=3))
    saved = content(folder / 'iter_3.pth')
    names = saved['message_hub']['runtime_info']['outdated_ckpt']
    assert names == ['iter_1.pth', 'iter_2.pth']
    for name in ('', '..', '../run/iter_1.pth', '/iter_1.pth', 'gone.pth', 5):
        saved['message_hub']['runtime_info']['outdated_ckpt'] = [name]
        torch.save(saved, folder / 'iter_3.pth')
        torch.save(own, folder / 'iter_1.pth')
        train(options, stop=dict(train=4))
        assert (folder / 'iter_1.pth').exists()
        (folder / 'iter_4.pth').unlink()


@RUNNERS
def test_a_run_from_a_named_checkpoint_is_another_run(runner, train, tmp_path):
    """Checkpoints beside it have more iterations, but are not of this run."""
    train(runner)
    folder = tmp_path / 'run'
    train(runner, resumed=str(folder / 'epoch_1.pth'), stop=dict(train=4))
    assert named(folder).name == 'epoch_2.pth'
    assert train(runner, stop=dict(train=4))._load_from == str(folder / 'epoch_2.pth')
    (folder / 'foreign.pth').write_text('no checkpoint')
    again = train(runner, stop=dict(train=4))
    assert again._load_from == str(folder / 'epoch_2.pth')
    assert "skipped while looking for a checkpoint: checkpoint '" in again.said.getvalue()
    assert 'foreign.pth' in again.said.getvalue()


def test_hooks_that_are_turned_off(tmp_path):
    """MMEngine accepts None for its own hooks only; resuming needs ResumeHook."""
    hooks = dict(SAFETY, bad_data=None, resume=None, timer=None)
    Config(dict(CONFIG, default_hooks=hooks)).dump(tmp_path / 'config.py')
    args = argparse.Namespace(config=str(tmp_path / 'config.py'), cfg_options={})
    args.work_dir, args.launcher, args.local_rank = str(tmp_path / 'run'), 'none', 0
    cfg = cli.load_config(args)
    assert cfg.default_hooks.keys() == hooks.keys() - {'bad_data', 'resume'}
    names = {type(hook).__name__ for hook in build_runner(cfg).hooks}
    assert 'PreemptionHook' in names
    assert not {'BadDataHook', 'ResumeHook', 'IterTimerHook'} & names
    cfg.load_from = 'weights.pth'
    cli.resume_from(cfg, 'auto')
    assert cfg.default_hooks.resume == dict(type='mmvmamba.ResumeHook', load_from='weights.pth')
