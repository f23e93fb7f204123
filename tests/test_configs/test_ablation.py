"""The ablations: what each config changes, and its size beside the paper's."""

import functools
import runpy
from pathlib import Path

import pytest
import yaml

pytest.importorskip('mmpretrain')

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402

from mmvmamba.analysis.flops import count_multiply_adds  # noqa: E402
from mmvmamba.nn import VMambaNet, resolve_arch  # noqa: E402

from ..analysis_tools import load  # noqa: E402

paper = load('paper')

CONFIGS = Path(__file__).parents[2] / 'configs'
FOLDER = CONFIGS / 'vmamba/ablation'
NAMES = sorted(path.stem.removesuffix('_8xb128_in1k') for path in FOLDER.glob('*.py'))
TINY, S2L5 = resolve_arch('tiny'), resolve_arch('tiny_s2l5')
STEP = dict(d_state=16, ssm_ratio=1.0, conv_kernel=0, gate='none', depths=(2, 2, 5, 2))
#: What differs from VMamba-T, or from its s2l5 form.
CHANGES = {
    'vmamba-t-s2l5_dstate-16': dict(d_state=16, ssm_ratio=1.0),
    'vmamba-t-s2l5_dstate-2': dict(d_state=2),
    'vmamba-t-s2l5_dstate-4': dict(d_state=4),
    'vmamba-t-s2l5_dstate-8': dict(d_state=8, ssm_ratio=1.5),
    'vmamba-t_act-gelu': dict(act='gelu'),
    'vmamba-t_act-relu': dict(act='relu'),
    'vmamba-t_init-random': dict(ssm_init='random'),
    'vmamba-t_init-zero': dict(ssm_init='zero'),
    'vmamba-t_mlp2-ssm2.5': dict(mlp_ratio=2.0, ssm_ratio=2.5),
    'vmamba-t_mlp3-ssm1.5': dict(mlp_ratio=3.0, ssm_ratio=1.5),
    'vmamba-t_outnorm-dwconv3': dict(out_norm='dwconv3'),
    'vmamba-t_outnorm-ln-dwconv3': dict(out_norm='ln_dwconv3'),
    'vmamba-t_outnorm-none': dict(out_norm='none'),
    'vmamba-t_outnorm-sigmoid': dict(out_norm='sigmoid'),
    'vmamba-t_outnorm-softmax': dict(out_norm='softmax'),
    'vmamba-t_scan-cross-nodwconv': dict(conv_kernel=0),
    'vmamba-t_step-d': STEP | dict(ssm_ratio=2.0, gate='act', depths=(2, 2, 2, 2)),
    'vmamba-t_step-d1': STEP | dict(gate='act', depths=(2, 2, 2, 2)),
    'vmamba-t_step-d2': STEP | dict(gate='act'),
    'vmamba-t_step-e': STEP,
    'vmamba-t_step-e1': STEP | dict(conv_kernel=3),
    'vmamba-t_step-e2': STEP | dict(conv_kernel=3, d_state=1),
}
for pattern in ('unidirectional', 'bidirectional', 'cascade'):
    CHANGES[f'vmamba-t_scan-{pattern}'] = dict(scan=pattern)
    CHANGES[f'vmamba-t_scan-{pattern}-nodwconv'] = dict(scan=pattern, conv_kernel=0)
for name, pattern in (
    ('diagonal',) * 2,
    ('snake',) * 2,
    ('window', 'local_window'),
    ('hilbert',) * 2,
):
    CHANGES[f'vmamba-t_scan-{name}'] = dict(scan=pattern)
#: Parameters by the authors' code, and the GFLOPs of the paper.
STEPS = {
    'vanilla': (22_893_448, '5.63'),
    'd': (28_991_656, '5.63'),
    'd.1': (22_926_376, '4.02'),
    'd.2': (28_256_680, '5.18'),
    'e': (26_247_592, '4.86'),
    'e.1': (26_283_880, '4.87'),
    'e.2': (25_558_120, '3.98'),
    'f': (30_705_832, '4.86'),
    'g': (30_249_064, '4.91'),
}


@functools.cache
def load(model):
    return Config.fromfile(CONFIGS / model.removeprefix('mmvmamba::'))


def without_backbone(cfg):
    whole = cfg.to_dict()
    return whole | dict(model=whole['model'] | dict(backbone=None))


def arch_of(cfg):
    settings = {
        k: v
        for k, v in cfg.model.backbone.to_dict().items()
        if k not in ('type', 'arch', 'out_indices', '_scope_')
    }
    return resolve_arch(cfg.model.backbone.arch, **settings)


def changes_of(path):
    """The base outside the folder, and what a file and its bases inside set in the backbone."""
    names = {k: v for k, v in runpy.run_path(str(path)).items() if not k.startswith('__')}
    assert set(names) == {'_base_', 'model'} and set(names['model']) == {'backbone'}
    base = (path.parent / names['_base_']).resolve()
    own = names['model']['backbone']
    if base.parent != FOLDER:
        return base.stem.removesuffix('_8xb128_in1k'), own
    root, changes = changes_of(base)
    return root, changes | own


@pytest.mark.parametrize('name', NAMES)
def test_config_differs_from_its_base_in_this_alone(name):
    base, changes = changes_of(FOLDER / f'{name}_8xb128_in1k.py')
    assert base == ('vmamba-t-s2l5' if 's2l5' in name else 'vmamba-t')
    assert resolve_arch(TINY, **changes) == resolve_arch(TINY, **CHANGES[name])


@pytest.mark.parametrize('name', ['vmamba-t-s2l5_dstate-8', 'vmamba-t_step-e2'])
def test_config_is_read_whole(name):
    cfg = load(f'vmamba/ablation/{name}_8xb128_in1k.py')
    base = 'vmamba-t-s2l5' if 's2l5' in name else 'vmamba-t'
    assert arch_of(cfg) == resolve_arch(S2L5 if 's2l5' in name else TINY, **CHANGES[name])
    assert without_backbone(cfg) == without_backbone(load(f'vmamba/{base}_8xb128_in1k.py'))


def test_tables_name_every_config_and_no_other():
    rows = {row.model for rows in paper.TABLES.values() for row in rows if '::' in row.model}
    paths = {CONFIGS / model.removeprefix('mmvmamba::') for model in rows}
    assert {path for path in paths if path.parent == FOLDER} == set(FOLDER.glob('*.py'))
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize('step', STEPS)
def test_steps_have_the_published_size(step):
    (row,) = (r for r in paper.TABLES['steps'] if r.name.partition(':')[0] == step)
    params, flops = STEPS[step]
    with torch.device('meta'):
        model = VMambaNet(arch_of(load(row.model)))
    assert sum(p.numel() for p in model.parameters()) == params
    counted = count_multiply_adds(model, torch.zeros(1, 3, 224, 224, device='meta')).total
    assert f'{counted / 1e9:.2f}' == flops


def test_accuracies_are_those_of_the_metafiles():
    models = []
    for folder in ('vmamba', 'vmamba/ablation', 'comparison'):
        models += yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text())['Models']
    listed = {
        f'mmvmamba::{model["Config"].removeprefix("configs/")}': (
            model['Results'][0]['Metrics']['Top 1 Accuracy'] if 'Results' in model else None
        )
        for model in models
    }
    for row in (row for rows in paper.TABLES.values() for row in rows):
        if '::' in row.model:
            assert listed[row.model] == row.top1, row


def test_accuracies_of_the_paper():
    """A few, read off once more."""
    found = {(name, row.name): row.top1 for name, rows in paper.TABLES.items() for row in rows}
    assert found['scan', 'unidirectional, no dwconv'] == 80.88
    assert found['scan', 'cascade'] == 82.42
    assert found['init', 'zero'] == 82.67
    assert found['d_state', 'd_state 8, ssm_ratio 1.5'] == 82.69
    assert found['ratios', 'mlp_ratio 2, ssm_ratio 2.5'] == 82.86
    assert found['activation', 'ReLU'] == 82.65
    steps = {row.name.partition(':')[0]: row for row in paper.TABLES['steps']}
    assert (steps['e.2'].paper_inference, steps['e.2'].paper_train) == (1942, 647)
    assert [steps[s].paper_inference for s in 'abc'] == [467, 464, 638]
