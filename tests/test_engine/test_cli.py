"""Arguments of the tools and what they change in a config."""

import argparse

import pytest
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from mmvmamba.engine import cli
from mmvmamba.engine.errors import UserError

CONFIG = """
default_scope = 'mmpretrain'
model = dict(type='ImageClassifier')
default_hooks = dict(timer=None, own=None, logger=dict(type='LoggerHook'))
custom_hooks = [dict(type='Own')]
train_dataloader = dict(batch_size=1)
val_dataloader = None
"""


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('LOCAL_RANK', '0')


@pytest.fixture
def load(tmp_path):
    path = tmp_path / 'own.py'

    def load(*arguments, text=CONFIG):
        path.write_text(text)
        parser = argparse.ArgumentParser()
        cli.add_common_arguments(parser)
        return cli.load_config(parser.parse_args([str(path), *arguments]))

    return load


def test_the_config_of_a_run(load):
    cfg = load()
    assert (cfg.launcher, cfg.work_dir) == ('none', 'work_dirs/own')
    assert cli.task_of(cfg) == 'mmpretrain'
    assert set(cfg.default_hooks) == {'timer', 'logger'}
    assert [hook['type'] for hook in cfg.custom_hooks] == ['Own', 'mmvmamba.MixedSizesHook']
    assert cfg.train_dataloader.collate_fn == dict(type='default_collate')
    assert cfg.val_dataloader is None


def test_the_work_dir(load):
    text = CONFIG + "work_dir = 'runs/a'\n"
    assert load(text=text).work_dir == 'runs/a'
    assert load('--work-dir', 'runs/b', text=text).work_dir == 'runs/b'


def test_options(load):
    options = ('train_dataloader.batch_size=2', 'resume=True', 'compile.dynamic=True')
    cfg = load('--cfg-options', *options)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.resume is True
    assert cfg.compile == dict(dynamic=True)


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('modl.type=A', "--cfg-options modl.type: the config has no 'modl'; did you mean model"),
        ('cfg.model.a=2', "--cfg-options cfg.model.a: the config has no 'cfg'"),
        (
            'custom_hooks.3.type=A',
            r"--cfg-options \['custom_hooks.3.type'\] do not match the config",
        ),
    ],
)
def test_wrong_options(load, option, words):
    with pytest.raises(UserError, match=words):
        load('--cfg-options', option)


@pytest.mark.parametrize(
    ('value', 'reason'),
    [
        ('dict(dims=(8,8))', 'write a dict as KEY.NAME=VALUE for each of its names'),
        ('{a:[1,2]}', 'write a dict as KEY.NAME=VALUE for each of its names'),
        ('{a:[1,2}', 'the brackets do not match'),
        ('[(1,2)', 'the brackets do not match'),
        ('(1,2),(3,4)', 'write nested lists as "[(a,b),(c,d)]"'),
        ('(1,2),(3', 'the brackets do not match'),
    ],
)
def test_values_that_cannot_be_parsed(load, value, reason, capsys):
    with pytest.raises(SystemExit) as end:
        load('--cfg-options', f'model.arch={value}')
    assert end.value.code == 2
    message = f'--cfg-options: model.arch={value} cannot be parsed; {reason}'
    assert message in capsys.readouterr().err


def test_settings_are_checked(load):
    with pytest.raises(
        UserError, match="train_dataloader.batch_size must be a number, but got 'a'"
    ):
        load('--cfg-options', 'train_dataloader.batch_size=a')


def test_a_config_without_a_model(load):
    with pytest.raises(UserError, match=r"own.py' has no model; its keys are \['a'\]"):
        load(text='a = 1\n')


@pytest.mark.parametrize(
    ('default_hooks', 'path', 'expected'),
    [
        ({}, 'a.pth', (True, 'a.pth', None)),
        ({}, 'auto', (True, None, 'weights.pth')),
        (dict(resume=dict(type='Own')), 'auto', (True, None, 'weights.pth')),
        (dict(resume=dict(override='lr')), 'auto', (True, None, 'weights.pth')),
    ],
)
def test_resume(default_hooks, path, expected):
    cfg = Config(dict(load_from='weights.pth', default_hooks=default_hooks))
    cli.resume_from(cfg, path)
    hook = cfg.default_hooks.get('resume') or {}
    assert (cfg.resume, cfg.load_from, hook.get('load_from')) == expected
    if path == 'auto':
        assert hook['type'] == default_hooks.get('resume', {}).get('type', 'mmvmamba.ResumeHook')


@pytest.mark.parametrize('hooks', ['', 'default_hooks = None', 'default_hooks = dict(resume=None)'])
@pytest.mark.parametrize('path', ['auto', 'a.pth'])
def test_an_option_of_a_hook_that_is_off(load, hooks, path):
    text = f"model = dict(type='Own')\n{hooks}\n"
    cfg = load('--cfg-options', 'default_hooks.resume.override=lr', text=text)
    cli.resume_from(cfg, path)
    expected = dict(type='mmvmamba.ResumeHook', override='lr')
    assert cfg.default_hooks.resume == expected | (dict(load_from=None) if path == 'auto' else {})


@pytest.mark.parametrize('kind', [None, 'OptimWrapper', 'AmpOptimWrapper'])
@pytest.mark.parametrize('on_cpu', [True, False])
def test_mixed_precision(kind, on_cpu, monkeypatch):
    monkeypatch.setattr(cli, 'runs_on_cpu', lambda: on_cpu)
    cfg = Config(dict(optim_wrapper=dict(dict(type=kind) if kind else {}, dtype='float16')))
    cli.use_amp(cfg)
    if on_cpu:
        assert cfg.optim_wrapper == dict(type='mmvmamba.CPUAmpOptimWrapper')
    else:
        assert cfg.optim_wrapper.loss_scale == 'dynamic'
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


def test_mixed_precision_of_another_wrapper():
    cfg = Config(dict(optim_wrapper=dict(type='Own')))
    with pytest.raises(UserError, match="--amp does not support optim_wrapper.type 'Own'"):
        cli.use_amp(cfg)


def test_checkpoints_that_exist(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'')
    for path in (str(tmp_path / 'a.pth'), 's3://bucket/a.pth', None):
        cfg = Config(dict(load_from=path))
        cli.check_checkpoint(cfg, whole=True)
        assert cfg.custom_hooks == [dict(type='mmvmamba.CheckpointMatchingHook', whole=True)]
    with pytest.raises(UserError, match="checkpoint 'no.pth' does not exist"):
        cli.check_checkpoint(Config(dict(load_from='no.pth')), whole=True)


@pytest.mark.parametrize('out_dir', [None, 'out'])
def test_the_file_that_a_run_begins_with_unless_it_resumes(out_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hooks = dict(checkpoint=dict(out_dir=out_dir))
    cfg = Config(dict(load_from='no.pth', work_dir='runs/x', default_hooks=hooks))
    cli.resume_from(cfg, 'auto')
    with pytest.raises(UserError, match="checkpoint 'no.pth' does not exist"):
        cli.check_checkpoint(cfg, whole=False)
    folder = tmp_path / ('runs/x' if out_dir is None else 'out/x')
    folder.mkdir(parents=True)
    (folder / 'iter_1.pth').touch()
    cli.check_checkpoint(cfg, whole=False)
