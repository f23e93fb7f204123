"""The key ``compile`` of MMEngine's configs."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)

TRAIN = Path(__file__).parents[2] / 'tools' / 'train.py'
# No warm-up, nothing random in the model, and no adaptive steps, whose first one is a sign.
COMMON = """
_base_ = {config!r}
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr={lr}, momentum=0.9),
)
param_scheduler = []
load_from = {weights!r}
resize = dict(
    type='RandomChoiceResize', scales=[(64, 64), (64, 96), (72, 128)], keep_ratio=False
)
"""
OWN = {
    'classification': '',
    'detection': """
model = dict(backbone=dict(drop_path_rate=0.0))
steps = [dict(t) for t in _base_.train_dataloader.dataset.pipeline]
steps[2] = resize
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=steps))
""",
    # BatchNorm needs two images, and of two values alone it would make signs of rounding.
    'segmentation': """
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=dict(drop_path_rate=0.0),
    decode_head=dict(dropout_ratio=0.0, pool_scales=(2, 3, 6)),
    auxiliary_head=dict(dropout_ratio=0.0),
)
steps = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    resize,
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=steps))
train_cfg = dict(max_iters=4)
default_hooks = dict(checkpoint=dict(interval=4))
""",
}
PARTS = {
    'classification': {'backbone', 'head'},
    'detection': {'backbone', 'neck', 'rpn_head', 'roi_head'},
    'segmentation': {'backbone', 'decode_head', 'auxiliary_head'},
}
LR = {'classification': 0.05, 'detection': 0.02, 'segmentation': 0.05}
# A detector's step has so many graphs that it is compiled once, for free sizes.
COMPILE = dict.fromkeys(OWN, 'compile=True') | {'detection': 'compile.dynamic=True'}


def build(config):
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return revert_sync_batchnorm(MODELS.build(cfg.model))


def initial_weights(config, path):
    torch.manual_seed(0)
    model = build(config)
    model.init_weights()
    torch.save({'state_dict': model.state_dict()}, path)
    return {name: value.clone() for name, value in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize('task', list(OWN))
def test_a_compiled_training_gives_the_weights_of_an_eager_one(task, request, run_script, tmp_path):
    """For images of several sizes, with steps that change every part by far more than rounding."""
    base = str(request.getfixturevalue(f'{task}_config'))
    config = tmp_path / 'config.py'
    weights = str(tmp_path / 'weights.pth')
    config.write_text(COMMON.format(config=base, lr=LR[task], weights=weights) + OWN[task])
    before = initial_weights(config, weights)
    after = {}
    for name, options in (('eager', ()), ('compiled', (COMPILE[task],))):
        options = ('--cfg-options', 'randomness.seed=0', *options)
        result = run_script(
            TRAIN, config, '--work-dir', name, '--no-validate', *options, cwd=tmp_path
        )
        assert ('has been "compiled"' in result.stdout + result.stderr) == (name == 'compiled')
        (path,) = (p for p in (tmp_path / name).glob('*.pth'))
        after[name] = torch.load(path, weights_only=False)['state_dict']
    for key, want in after['eager'].items():
        torch.testing.assert_close(
            after['compiled'][key],
            want,
            rtol=1e-3,
            atol=1e-4,
            msg=lambda text, key=key: f'{key}: {text}',
        )
    moved = {part: 0.0 for part in PARTS[task]}
    for key, value in before.items():
        part = re.match(r'\w+', key)[0]
        moved[part] = max(moved[part], (after['eager'][key] - value).abs().max().item())
    assert min(moved.values()) > 20 * 1e-4, moved


@pytest.mark.slow
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_what_compiles_whole(task, training, request):
    """Compile the parts that docs/performance.md lists, without graph breaks."""
    model = build(request.getfixturevalue(f'{task}_config')).train(training)

    def detector(images):
        return model.rpn_head(model.extract_feat(images))

    def segmentor(images):
        return model(images, mode='tensor')

    run = detector if task == 'detection' else segmentor
    torch._dynamo.reset()
    images = torch.randn(2, 3, 96, 128)
    compiled = torch.compile(run, backend='aot_eager', fullgraph=True, dynamic=True)
    results = []
    for call in (compiled, run):
        torch.manual_seed(1)  # drop path and dropout
        results.append(call(images))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
