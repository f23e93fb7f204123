"""The options of docs/training.md: what each changes."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmvmamba.engine import CPUAmpOptimWrapper
from mmvmamba.models import VMamba

CONFIGS = Path(__file__).parents[2] / 'configs'
RECIPES = sorted(
    path for path in CONFIGS.glob('*/*.py') if path.parent.name not in ('_base_', 'demo', 'fsdp')
)
THIN = dict(dims=(8, 16, 24, 32), depths=(2, 1, 3, 1))


class Detector(nn.Module):
    """A backbone and something after it, with names like those of mmdet's models."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = VMamba(arch=THIN, out_indices=(3,), drop_path_rate=0.0, **settings)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x):
        return self.head(self.backbone(x)[-1]).mean()


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_every_recipe_scales_its_rate_and_is_safe(path):
    cfg = Config.fromfile(path)
    assert cfg.auto_scale_lr.base_batch_size > 0
    assert not cfg.auto_scale_lr.get('enable', False)
    hooks = cfg.default_hooks
    assert hooks.checkpoint.type == 'mmvmamba.AtomicCheckpointHook'
    assert hooks.checkpoint.interval >= 1
    names = dict(
        resume='Resume',
        preemption='Preemption',
        validation='RepeatValidation',
        bad_data='BadData',
        non_finite='NonFiniteLoss',
    )
    assert {k: hooks[k].type for k in names} == {
        k: f'mmvmamba.{name}Hook' for k, name in names.items()
    }


# ---- layer-wise decay ----


@pytest.mark.parametrize(
    ('name', 'depth'),
    [
        ('patch_embed.0.weight', 0),
        ('layers.0.blocks.0.norm.weight', 1),
        ('layers.0.blocks.1.op.Ds', 2),
        ('layers.0.downsample.1.weight', 2),
        ('layers.1.blocks.0.norm.weight', 3),
        ('layers.2.blocks.2.norm.weight', 6),
        ('layers.3.blocks.0.norm2.bias', 7),
        ('outnorm3.weight', 8),
    ],
)
def test_layer_depth(name, depth):
    backbone = VMamba(arch=THIN, out_indices=(3,))
    assert backbone.get_layer_depth(name) == (depth, 9)
    assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 9)


@pytest.mark.parametrize('name', ['nothing.weight', 'neck.conv.weight'])
def test_layer_depth_of_other_parameters(name):
    with pytest.raises(ValueError, match=name):
        VMamba(arch=THIN).get_layer_depth(name, 'backbone.')


def layer_decay(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            constructor='mmvmamba.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise,
        ),
    )


def test_layer_decay():
    model = Detector(frozen_stages=0)
    keys = dict(Ds=dict(lr_mult=0.1, decay_mult=0.0))
    wrapper = layer_decay(model, layer_decay_rate=0.5, norm_decay_mult=0.0, custom_keys=keys)
    groups = {id(p): group for group in wrapper.param_groups for p in group['params']}
    named = dict(model.named_parameters())
    assert groups[id(named['head.weight'])]['lr'] == 1.0
    assert groups[id(named['backbone.outnorm3.weight'])]['lr'] == 1.0
    last, first = (
        named['backbone.layers.3.blocks.0.op.in_proj.weight'],
        'backbone.layers.0.blocks.0',
    )
    assert groups[id(last)]['lr'] == 0.5
    assert groups[id(named[f'{first}.op.in_proj.weight'])]['lr'] == 0.5**7
    assert groups[id(named[f'{first}.op.in_proj.weight'])]['weight_decay'] == 0.05
    assert groups[id(named[f'{first}.norm.weight'])]['weight_decay'] == 0.0
    assert groups[id(named[f'{first}.op.Ds'])]['lr'] == pytest.approx(0.1 * 0.5**7)
    assert groups[id(named[f'{first}.op.Ds'])]['weight_decay'] == 0.0
    # What is frozen is not among them.
    frozen = {name for name, p in named.items() if id(p) not in groups}
    assert frozen == {name for name in named if name.startswith('backbone.patch_embed.')}


@pytest.mark.parametrize('rate', [None, 0.0, 1.5, '0.9'])
def test_wrong_layer_decay_rate(rate):
    with pytest.raises(ValueError, match='layer_decay_rate must be in'):
        layer_decay(Detector(), layer_decay_rate=rate)


def test_layer_decay_of_another_backbone():
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    with pytest.raises(TypeError, match='Linear has no get_layer_depth'):
        layer_decay(model, layer_decay_rate=0.9)


# ---- memory ----


def gradients(model, x):
    model(x).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_checkpointing_and_frozen_stages():
    """The same gradients; none below what is frozen."""
    x = torch.randn(2, 3, 32, 32)
    plain, checkpointed = Detector(), Detector(with_cp=True)
    expected, found = gradients(plain, x), gradients(checkpointed, x)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    frozen = Detector(frozen_stages=2, with_cp=True).train()
    names = gradients(frozen, x)
    kept = ('backbone.layers.2.', 'backbone.layers.3.', 'backbone.outnorm3.', 'head.')
    assert names.keys() == {n for n in expected if n.startswith(kept)}
    assert not frozen.backbone.layers[1].training
    assert frozen.backbone.layers[2].training


def test_accumulation_steps_like_the_whole_batch():
    """Two halves and one step, against the whole in one; nothing in the model mixes images."""
    x = torch.randn(4, 3, 32, 32)
    models = Detector(), Detector()
    for model, parts in zip(models, ([x], [x[:2], x[2:]]), strict=True):
        cfg = dict(
            optimizer=dict(type='SGD', lr=0.1),
            accumulative_counts=len(parts),
            clip_grad=dict(max_norm=1.0),
        )
        wrapper = build_optim_wrapper(model, cfg)
        for part in parts:
            wrapper.update_params(model(part))
    start = dict(Detector().named_parameters())
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    assert any(not torch.equal(p, start[n]) for n, p in models[0].named_parameters())


# ---- mixed precision ----


@pytest.mark.parametrize(('dtype', 'bits'), [('bfloat16', 8), ('float16', 11)])
def test_amp_on_a_cpu(dtype, bits):
    model, x = Detector(), torch.randn(2, 3, 32, 32)
    exact = model(x).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = CPUAmpOptimWrapper(dtype=dtype, optimizer=optimizer)
    before = model.head.weight.detach().clone()
    for _ in range(20):  # the scaler may skip the first steps
        with wrapper.optim_context(model):
            loss = model(x)
            assert model.head(torch.zeros(1, 32, 1, 1)).dtype == getattr(torch, dtype)
        if torch.equal(before, model.head.weight):
            assert loss.item() == pytest.approx(exact, abs=8 * 2.0**-bits)
        wrapper.update_params(loss)
    assert not torch.equal(before, model.head.weight)
    assert torch.isfinite(model.head.weight).all()
    state = wrapper.state_dict()
    other = CPUAmpOptimWrapper(dtype=dtype, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    other.load_state_dict(state)
    assert other.loss_scaler.state_dict() == wrapper.loss_scaler.state_dict()
    assert other.param_groups[0]['lr'] == 0.1


def test_wrong_dtype():
    with pytest.raises(ValueError, match="dtype must be one of .*'float64'"):
        CPUAmpOptimWrapper(dtype='float64', optimizer=torch.optim.SGD([torch.ones(1)], lr=1.0))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_scan_adds_up_in_float32(dtype):
    """4096 steps of 1/64: a state in half precision would stop growing long before 64."""
    from mmvmamba.ops import selective_scan

    one = torch.ones(1, 1, 4096, dtype=dtype)
    with torch.autocast('cpu', dtype):
        y = selective_scan(one, one / 64, torch.full((1, 1), -1e-6), one, one)
    assert float(y[0, 0, -1]) == pytest.approx(64, rel=0.01)
