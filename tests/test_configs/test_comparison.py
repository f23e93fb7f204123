"""Networks to compare VMamba with, as classifiers and in the analysis tools."""

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config  # noqa: E402

from mmvmamba.analysis.erf import receptive_field  # noqa: E402
from mmvmamba.analysis.model_flops import build_model  # noqa: E402

from ..analysis_tools import load  # noqa: E402
from .test_ablation import CONFIGS  # noqa: E402

load_model = load('analysis_model').load_model

THIN = {
    'vim-s': ('mmvmamba.Vim', dict(arch=dict(embed_dims=12, num_layers=2)), 12, 16),
    's4nd-convnext-t': (
        'mmvmamba.S4NDConvNeXt',
        dict(arch=dict(depths=(1, 1), channels=(8, 12)), d_state=4),
        12,
        8,
    ),
}


@pytest.mark.parametrize('name', THIN)
def test_recipe_trains_and_predicts(name):
    from mmpretrain.structures import DataSample

    kind, settings, dim, _ = THIN[name]
    cfg = Config.fromfile(CONFIGS / f'comparison/{name}_8xb128_in1k.py')
    assert cfg.model.backbone.type == kind and cfg.optim_wrapper.type == 'AmpOptimWrapper'
    cfg.model.backbone.update(settings)
    cfg.model.head.in_channels = dim
    model = build_model(cfg)
    images = torch.rand(2, 3, 64, 64)
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    assert model(images).shape == (2, 1000)
    predicted = model(images, samples, mode='predict')
    assert all(sample.pred_score.sum().isclose(torch.ones(())) for sample in predicted)
    model.train()
    model(images, samples, mode='loss')['loss'].backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize('name', THIN)
def test_analysis_takes_config_and_callable(name):
    kind, settings, dim, stride = THIN[name]
    options = ''.join(f'+{key}={value!r}' for key, value in settings.items()).replace(' ', '')
    size, images = (64, 96), torch.rand(1, 3, 64, 96)
    for spec in (
        f'mmvmamba::comparison/{name}_8xb128_in1k.py',
        f'{kind.replace(".", ".models:")}',
    ):
        model = load_model(spec + options, to_map=True, size=size)
        assert model(images).shape == (1, dim, 64 // stride, 96 // stride)
        field = receptive_field(model, [images])
        assert field.share_within([200])[0] == pytest.approx(1)
