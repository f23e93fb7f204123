"""Counts of parameters and multiply-adds on the command line."""

from pathlib import Path

from mmengine.config import Config

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)
from mmvmamba.analysis.model_flops import count_config

ROOT = Path(__file__).parents[3]
TOOL = ROOT / 'tools/analysis_tools/get_flops.py'
CONFIG = ROOT / 'configs/upernet/vmamba-t_upernet_8xb2-160k_ade20k-512x512.py'


def test_counts_a_segmentor(run_script, tmp_path):
    options = ['model.backbone.depths=1,1,1,1', 'model.backbone.dims=8,16,24,32']
    options += ['model.decode_head.in_channels=8,16,24,32', 'model.auxiliary_head.in_channels=24']
    size = ('--shape', 64, 96)
    result = run_script(TOOL, CONFIG, *size, '--by-op', '--cfg-options', *options, cwd=tmp_path)
    assert 'Input shape: 64 x 96' in result.stdout
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.update(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    cfg.model.decode_head.in_channels = [8, 16, 24, 32]
    cfg.model.auxiliary_head.in_channels = 24
    expected = count_config(cfg, (64, 96))
    assert f'Parameters: {expected.params:,}' in result.stdout
    assert f'FLOPs: {expected.flops / 1e9:.9f} G' in result.stdout
    assert 'ss2d_scan:' in result.stdout


def test_refuses_an_empty_image(run_here):
    code, err = run_here('analysis_tools/get_flops.py', CONFIG, '--shape', 0, 96)
    assert code == 2
    assert 'height and a width of at least 1' in err
