"""Changes and checks of a config by the tools' runner."""

import errno
import logging
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch._inductor import config as inductor
from torch.utils.data import BatchSampler

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.run_summary import dumped_config
from mmvmamba.engine.runner import build_runner, runner
from mmvmamba.engine.runner.runner import ToolRunnerMixin


@pytest.mark.parametrize(
    ('given', 'on_cpu', 'off'),
    [
        (True, True, True),
        (dict(dynamic=True), True, True),
        (None, True, False),
        (True, False, False),
    ],
)
def test_layouts_of_compiled_convolutions(given, on_cpu, off, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, 'runs_on_cpu', lambda: on_cpu)
    settings = dict(model=dict(type='mmengine.ToyModel'), work_dir=str(tmp_path), compile=given)
    built = {}
    monkeypatch.setattr(runner.Runner, 'from_cfg', lambda cfg: built.update(cfg))
    with inductor.patch(layout_optimization=True):
        build_runner(Config(settings))
        assert inductor.layout_optimization is not off
    assert built['compile'] == given


class Base:
    """Base of the mixin: a loop over a dataset of two classes."""

    metainfo = dict(classes=('green', 'blue'))

    def __init__(self, **model):
        self.cfg = Config(dict(model=model))
        self.logger = logging.getLogger('runner')
        self.model = nn.Identity()

    def build_train_loop(self, loop):
        dataset = SimpleNamespace(metainfo=self.metainfo)
        return SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset), of=loop)

    def build_optim_wrapper(self, optim_wrapper):
        return build_optim_wrapper(self.model, optim_wrapper)


class Mixed(ToolRunnerMixin, Base):
    pass


def build_optimizer(model, **optimizer):
    multipliers = dict(bias_lr_mult=0.5, custom_keys={'0': dict(lr_mult=0.1)})
    cfg = Config(dict(optim_wrapper=dict(optimizer=optimizer, paramwise_cfg=multipliers)))
    mixed = Mixed()
    mixed.model = model
    return mixed.build_optim_wrapper(cfg.optim_wrapper).optimizer


def test_parameter_groups_are_plain_dictionaries():
    """A step with those of MMEngine does not compile."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(model, type='AdamW', lr=0.1)
    rates = [group['lr'] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.05])
    for _ in range(2):
        assert {type(group) for group in optimizer.param_groups} == {dict}
        optimizer.load_state_dict(optimizer.state_dict())
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.compile(optimizer.step, backend='eager')()
    for p, old in zip(model.parameters(), before, strict=True):
        assert not torch.equal(p, old)


@pytest.mark.parametrize('kind', ['AdamW', torch.optim.SGD])
def test_optimizers_that_are_registered_or_classes(kind):
    assert build_optimizer(nn.Linear(2, 2), type=kind, lr=0.1).defaults['lr'] == 0.1


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UserError, match=r"optimizer 'AdamX' is not registered.*'AdamW'"):
        build_optimizer(nn.Linear(2, 2), type='AdamX')


def test_a_wrong_argument_of_an_optimizer():
    with pytest.raises(UserError, match='Invalid learning rate: -1.0'):
        build_optimizer(nn.Linear(2, 2), type='AdamW', lr=-1.0)


@pytest.mark.parametrize(('classes', 'warned'), [(2, False), (80, True)])
def test_heads_for_the_classes_of_the_data_or_more(classes, warned, caplog):
    loop = Mixed(bbox_head=dict(num_classes=classes)).build_train_loop('loop')
    assert loop.of == 'loop'
    assert ('but model.bbox_head.num_classes is 80' in caplog.text) == warned


def test_a_head_for_fewer_classes_than_the_data_has():
    with pytest.raises(UserError, match='has 2 classes, but model.bbox_head.num_classes is 1'):
        Mixed(bbox_head=dict(num_classes=1)).build_train_loop('loop')


def test_boxes_of_a_panoptic_data_set_are_of_things(monkeypatch, caplog):
    panoptic = dict(classes=('green', 'blue', 'sky'), thing_classes=('green', 'blue'))
    monkeypatch.setattr(Base, 'metainfo', panoptic)
    Mixed(roi_head=dict(bbox_head=dict(num_classes=2))).build_train_loop('loop')
    assert not caplog.text


@pytest.mark.parametrize('runner_type', ['Runner', 'FlexibleRunner'])
def test_no_secret_in_the_log(runner_type, tmp_path, capsys):
    url = 'http://user:pa55@host/x.pth?token=pa55'
    backbone = dict(type='mmvmamba.VMamba', init_cfg=dict(type='Pretrained', checkpoint=url))
    cfg = Config(
        dict(
            model=backbone,
            load_from=url,
            work_dir=str(tmp_path),
            runner_type=runner_type,
            env_cfg={},
            experiment_name=f'test_no_secret_in_the_log_{runner_type}',
        )
    )
    built = build_runner(cfg)
    built.logger.warning(f'Load checkpoint from {url}')
    log = ''.join(path.read_text() for path in tmp_path.rglob('*.log'))
    assert "load_from = 'http://host/x.pth?...'" in log
    assert 'Load checkpoint from http://host/x.pth?...' in log
    assert 'pa55' not in log + capsys.readouterr().out
    assert url in built.cfg.pretty_text


@pytest.mark.parametrize('runner_type', ['Runner', 'FlexibleRunner'])
def test_keeps_the_config_of_the_training_run(runner_type, tmp_path):
    saved = tmp_path / 'work/own.py'
    for load_from in (None, 'epoch_1.pth'):
        (tmp_path / 'own.py').write_text(
            f'model = dict(type="mmvmamba.VMamba")\nload_from = {load_from!r}\n'
            f'work_dir = {str(saved.parent)!r}\nrunner_type = {runner_type!r}\nenv_cfg = dict()\n'
            f'experiment_name = "test_keeps_{runner_type}_{load_from}"\n'
        )
        cfg = Config.fromfile(tmp_path / 'own.py')
        runner = build_runner(cfg, keep_config=load_from is not None)
    assert Config.fromfile(saved).load_from is None
    own = dumped_config(runner)
    assert own != str(saved) and Config.fromfile(own).load_from == 'epoch_1.pth'


NEPTUNE = dict(type='Visualizer', vis_backends=[dict(type='NeptuneVisBackend')])


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(env_cfg=dict(mp_cfg=dict(mp_start_method='no'))), "cannot find context for 'no'"),
        (dict(visualizer=NEPTUNE), 'neptune'),
        (dict(param_scheduler=[dict(type='StepLR')]), 'optim_wrapper'),
        (dict(log_level='LOUD'), 'LOUD'),
    ],
)
def test_settings_that_mmengine_refuses(settings, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'neptune', None)
    name = f'test_settings_{words[:6]}'
    model = dict(type='mmengine.ToyModel')
    cfg = Config(dict(model=model, work_dir=str(tmp_path), experiment_name=name, **settings))
    with pytest.raises(UserError, match=f'^Runner cannot be built: .*{words}'):
        build_runner(cfg)


def test_a_bug_in_a_check_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, 'check_feature_maps', None)
    name = 'test_a_bug_in_a_check'
    model = dict(type='mmvmamba.VMamba', arch=dict(dims=(4, 4, 4, 4), depths=(1, 1, 1, 1)))
    cfg = Config(dict(model=model, work_dir=str(tmp_path), env_cfg={}, experiment_name=name))
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        build_runner(cfg)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs a full disk')
@pytest.mark.parametrize('runner_type', ['Runner', 'FlexibleRunner'])
def test_a_log_on_a_full_disk(runner_type, tmp_path, capsys):
    """Python alone prints a traceback for each message."""
    backbone = dict(type='mmvmamba.VMamba', arch=dict(dims=(4, 4, 4, 4), depths=(1, 1, 1, 1)))
    settings = dict(env_cfg={}, experiment_name=f'test_a_log_on_a_full_disk_{runner_type}')
    cfg = dict(model=backbone, work_dir=str(tmp_path), runner_type=runner_type, **settings)
    built = build_runner(Config(cfg))
    (handler,) = (h for h in built.logger.handlers if isinstance(h, logging.FileHandler))
    handler.setStream(open('/dev/full', 'w')).close()
    words = r"\.log' cannot be written: No space left on device; free some space, or use another"
    with pytest.raises(UserError, match=words):
        built.logger.warning('a message')
    built._hooks.clear()
    built.call_hook('after_train_iter', batch_idx=0)
    capsys.readouterr()
    built.logger.error('a message')
    built.logger.error('a message')
    err = capsys.readouterr().err
    assert err.count('cannot be written: No space left on device; the run continues without') == 1
    assert 'Traceback' not in err


def test_a_stale_log_does_not_end_a_run(tmp_path, capsys):
    log_errors = runner._LogErrors()
    handler = logging.FileHandler(tmp_path / 'a.log', delay=True)
    for _ in range(2):
        try:
            raise OSError(errno.ESTALE, 'Stale file handle')
        except OSError:
            log_errors.handle(handler, None)
    assert capsys.readouterr().err.count('Stale file handle; the run continues without it') == 1


@pytest.mark.parametrize(
    ('drop_last', 'sampler'),
    [(True, DefaultSampler), (False, DefaultSampler), (True, InfiniteSampler)],
)
def test_drop_last_that_leaves_no_batch(drop_last, sampler, monkeypatch):
    """MMEngine would train for no iteration and end with status 0."""
    batches = BatchSampler(sampler(range(3)), 4, drop_last)
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo={}), batch_sampler=batches)
    monkeypatch.setattr(Base, 'build_train_loop', lambda *_: SimpleNamespace(dataloader=loader))
    if not drop_last or sampler is InfiniteSampler:
        assert Mixed().build_train_loop(dict()).dataloader is loader
        return
    with pytest.raises(
        UserError, match='leaves no batch: a process has 3 samples, and batch_size is 4'
    ):
        Mixed().build_train_loop(dict())


@pytest.mark.parametrize(
    ('last', 'words'),
    [('a.pth', 'a.pth is the last checkpoint; continue with --resume'), (None, 'no checkpoint')],
)
def test_ctrl_c(last, words, tmp_path, caplog):
    mixed = Mixed()
    mixed.work_dir = str(tmp_path)
    if last:
        (tmp_path / 'last_checkpoint').write_text(last)
    with pytest.raises(KeyboardInterrupt), mixed._interrupt_explained():
        raise KeyboardInterrupt
    assert f'interrupted: {words}' in caplog.text
