"""The checkpoint of a run: renamed, checked and logged before it is loaded."""

import types

import pytest
import torch
from mmengine.model import BaseModule, BaseTTAModel
from torch import nn
from torch.nn.parallel import DataParallel

from mmvmamba.engine import CheckpointMatchingHook
from mmvmamba.engine.hooks import checkpoint_matching_hook
from mmvmamba.models import VMamba
from mmvmamba.nn import VMambaNet

from ...naming_schemes import january_names

ARCH = dict(
    dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), mlp_ratio=0.0, stem='patch', downsample='merging'
)


class Detector(BaseModule):
    def __init__(self, **backbone):
        super().__init__()
        self.backbone = VMamba(ARCH, **backbone)
        self.head = nn.Linear(4, 2)


class TTA(BaseTTAModel):
    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def merge_preds(self, data_samples_list):
        raise NotImplementedError


def detector_file():
    """The content of a file with the names of January 2024."""
    torch.manual_seed(0)
    return {'state_dict': january_names(Detector().state_dict())}


def run_hook(checkpoint, whole=False, resume=False, model=None, load_from='x.pth'):
    """Call the hook of a run; return the lines that it logged."""
    lines = []
    runner = types.SimpleNamespace(
        model=model or Detector(),
        logger=types.SimpleNamespace(info=lines.append),
        work_dir='work',
        _load_from=load_from,
        _resume=resume,
    )
    CheckpointMatchingHook(whole).after_load_checkpoint(runner, checkpoint)
    return lines


@pytest.mark.parametrize('wrap', [lambda m: m, DataParallel, TTA, lambda m: TTA(DataParallel(m))])
def test_older_names_are_renamed(wrap):
    torch.manual_seed(0)
    source, target = Detector(), Detector()
    checkpoint = detector_file()
    assert any('self_attention' in key for key in checkpoint['state_dict'])
    (line,) = run_hook(checkpoint, whole=True, model=wrap(target))
    count = len(source.state_dict())
    assert line.startswith(f'x.pth: {count} of {count} tensors found; missing: none')
    target.load_state_dict(checkpoint['state_dict'])
    for key, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[key]), key


STATE_OF_A_RUN = dict(meta={}, message_hub={})


@pytest.mark.parametrize(
    ('missing', 'whole', 'resume', 'words'),
    [
        ('head.bias', False, False, None),
        ('head.bias', True, False, r'missing: head\.bias; '),
        ('head.bias', False, True, r'missing: head\.bias; '),
        ('backbone.outnorm0.bias', False, False, None),
        ('backbone.outnorm0.bias', True, False, r'missing: backbone\.outnorm0\.bias; '),
        ('backbone.layers.1.blocks.0.op.Ds', False, False, r'missing: backbone\.layers\.1'),
    ],
)
def test_what_must_be_in_the_file(missing, whole, resume, words):
    checkpoint = {'state_dict': Detector().state_dict(), **STATE_OF_A_RUN}
    del checkpoint['state_dict'][missing]
    before = dict(checkpoint['state_dict'])
    if words is None:
        (line,) = run_hook(checkpoint, whole, resume)
        assert f'missing: {missing}' in line
        return
    with pytest.raises(ValueError, match=f"^checkpoint 'x.pth' does not match Detector: .*{words}"):
        run_hook(checkpoint, whole, resume)
    assert checkpoint['state_dict'] == before


@pytest.mark.parametrize('out_indices', [None, (0, 1, 2, 3)], ids=['classifier', 'backbone'])
def test_files_without_heads(out_indices):
    net = VMambaNet(ARCH, out_indices=out_indices)
    checkpoint = {'model': net.state_dict(), 'epoch': 3}
    (line,) = run_hook(checkpoint)
    assert ('missing: head.weight' in line) == (out_indices is not None)
    assert 'unexpected: none' in line
    model = Detector()
    model.load_state_dict(checkpoint['state_dict'], strict=False)
    for key, value in net.layers.state_dict().items():
        assert torch.equal(value, model.backbone.layers.state_dict()[key]), key


def test_another_network_must_have_something_in_common():
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2)))
    (line,) = run_hook({'state_dict': {'backbone.bias': torch.zeros(2)}}, model=model)
    assert line.startswith('x.pth: 1 of 2 tensors found; missing: backbone.weight')
    with pytest.raises(ValueError, match=r'does not match ModuleDict: 0 of 2 tensors found'):
        run_hook({'state_dict': {'bias': torch.zeros(2)}}, model=model)


def test_weights_alone_are_not_resumed():
    for given in ({}, dict(meta={}), dict(message_hub={})):
        checkpoint = {'state_dict': Detector().state_dict(), **given}
        with pytest.raises(ValueError, match=r'x.pth. contains weights but no training state'):
            run_hook(checkpoint, resume=True)
    assert len(run_hook({**checkpoint, **STATE_OF_A_RUN}, resume=True)) == 1


def test_a_sharded_model_is_not_compared(monkeypatch):
    """Its shards have other names and shapes than a file; names are changed all the same."""
    monkeypatch.setattr(checkpoint_matching_hook, 'FullyShardedDataParallel', VMamba)
    checkpoint = detector_file()
    assert run_hook(checkpoint, whole=True) == []
    assert not any('self_attention' in key for key in checkpoint['state_dict'])
    checkpoint['state_dict']['head.bias'] = torch.full((2,), float('nan'))
    with pytest.raises(ValueError, match=r'NaN or Inf for Detector: head.bias \(2 of 2 values\)'):
        run_hook(checkpoint)


@pytest.mark.parametrize('options', [{}, dict(whole=True), dict(resume=True)])
@pytest.mark.parametrize('key', ['head.bias', 'backbone.outnorm0.bias'])
def test_values_that_are_not_finite(key, options):
    checkpoint = {**detector_file(), **STATE_OF_A_RUN}
    checkpoint['state_dict'][key] = torch.full_like(checkpoint['state_dict'][key], float('nan'))
    before = dict(checkpoint)
    words = rf'contains NaN or Inf for Detector: {key} \((\d) of \1 values\)\. The run that'
    with pytest.raises(ValueError, match=f"^checkpoint 'x.pth' {words}"):
        run_hook(checkpoint, **options)
    assert checkpoint == before


def test_another_kind_of_dtype_in_a_head():
    """A head of another kind starts from random weights, as one of another shape does."""
    checkpoint = detector_file()
    checkpoint['state_dict']['head.bias'] = torch.ones(2, dtype=torch.int8)
    (line,) = run_hook(checkpoint)
    assert 'head.bias int8 instead of float32' in line
    assert 'head.bias' not in checkpoint['state_dict']
    checkpoint = detector_file()
    checkpoint['state_dict']['head.bias'] = torch.ones(3)  # a backbone may resize it in its own way
    (line,) = run_hook(checkpoint)
    assert 'head.bias (3,) instead of (2,)' in line
    assert 'head.bias' in checkpoint['state_dict']
    checkpoint = detector_file()
    checkpoint['state_dict']['head.bias'] = torch.ones(2, dtype=torch.int8)
    with pytest.raises(ValueError, match='head.bias int8 instead of float32'):
        run_hook(checkpoint, whole=True)


def test_no_secret_of_a_url():
    url = 'http://user:pa55@host/x.pth?pa55'
    (line,) = run_hook(detector_file(), load_from=url)
    assert line.startswith('http://host/x.pth?...: ')
    with pytest.raises(ValueError, match=r"checkpoint 'http://host/x.pth\?...' does not match"):
        run_hook({'state_dict': {'bias': torch.zeros(2)}}, load_from=url)


def test_image_channels_are_adapted_to_train_and_for_nothing_else():
    torch.manual_seed(0)
    given, model = Detector(), Detector(in_channels=12)
    checkpoint = detector_file()
    adapted, matching = run_hook(checkpoint, model=model)
    name = 'backbone.patch_embed.0.weight'
    assert adapted == f'x.pth: {name} adapted from 3 to 12 image channels'
    assert 'missing: none; shape or dtype mismatch: none' in matching
    model.load_state_dict(checkpoint['state_dict'])
    weight = given.state_dict()[name].repeat(1, 4, 1, 1) / 4
    torch.testing.assert_close(model.state_dict()[name], weight)
    for options in (dict(whole=True), dict(resume=True)):
        with pytest.raises(ValueError, match=r'\(8, 3, 4, 4\) instead of \(8, 12, 4, 4\)'):
            run_hook(detector_file() | STATE_OF_A_RUN, model=model, **options)
    with pytest.raises(ValueError, match=r'\(8, 3, 4, 4\) instead of \(8, 12, 4, 4\)'):
        model.load_state_dict(detector_file()['state_dict'])
