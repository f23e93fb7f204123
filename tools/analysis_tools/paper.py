"""Shared by the tools in this folder: tables of the paper (arXiv 2401.10166) and its repository.

All throughputs are of one A100, in images per second at 224x224, batch 128; those of training are
without the optimizer's step. Nothing here was measured by this project.
"""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reported:
    """A row of one of the paper's tables; throughputs are in images per second."""

    name: str  # in the paper
    model: str  # as an argument of :func:`analysis_model.load_model`
    top1: float | None = None  # on ImageNet, in percent
    paper_inference: int | None = None
    paper_train: int | None = None
    box_ap: float | None = None  # on COCO as the backbone of Mask R-CNN, 1x
    miou: float | None = None  # on ADE20K, of one scale, as the backbone of UperNet, 160k


#: Names of models that are not in the tables.
_NAMES = {
    'resnet50_8xb32_in1k': 'ResNet-50',
    'xcit-small-12-p16_3rdparty_in1k': 'XCiT-S12',
    'vmamba-t_demo-64x64': 'VMamba-T',
}
_SIZES = dict(tiny='T', small='S', base='B')


def display_name(model: str) -> str:
    """Return the paper's name of a model that a command line names, with the settings behind it.

    >>> display_name('swin-tiny_16xb64_in1k+window_size=scaled')
    'Swin-T, scaled windows'
    >>> display_name('tiny+ssm_init=zero')
    'VMamba-T, ssm_init=zero'
    """
    target, *settings = re.split(r'\+(?=[A-Za-z_]\w*=)', model)
    names = {Path(row.model.rpartition('/')[2]).stem: row.name for row in TABLES['imagenet']}
    name = (names | _NAMES).get(Path(target).stem, target)
    if arch := re.fullmatch(r'(vanilla_)?(tiny|small|base)(_s\dl\d+)?', target):
        vanilla, size, variant = arch.groups()
        name = f'{"Vanilla-" if vanilla else ""}VMamba-{_SIZES[size]}'
        name += f' ({variant[1:]})' if variant else ''
    settings = [text.replace('window_size=scaled', 'scaled windows') for text in settings]
    return ', '.join([name.replace(' (s1l8)', ''), *settings])


def _config(name: str, folder: str = 'vmamba') -> str:
    return f'mmvmamba::{folder}/{name}_8xb128_in1k.py'


def _ablation(name: str) -> str:
    return _config(f'vmamba-t{name}', 'vmamba/ablation')


TINY, TINY_S2L5 = _config('vmamba-t'), _config('vmamba-t-s2l5')
VANILLA = _config('vanilla-vmamba-t')

#: The tables, by their names in ``compare_throughput.py``.
TABLES: dict[str, tuple[Reported, ...]] = {
    'imagenet': (
        Reported('Swin-T', 'swin-tiny_16xb64_in1k', 81.2, 1244, 987, 42.7, 44.4),
        Reported('Swin-S', 'swin-small_16xb64_in1k', 83.2, 718, 642, 44.8, 47.6),
        Reported('Swin-B', 'swin-base_16xb64_in1k', 83.5, 458, 496, 46.9, 48.1),
        Reported('ConvNeXt-T', 'convnext-tiny_32xb128_in1k', None, 1198, 702),
        Reported('ConvNeXt-S', 'convnext-small_32xb128_in1k', None, 684, 445),
        Reported('ConvNeXt-B', 'convnext-base_32xb128_in1k', None, 436, 334),
        Reported('DeiT-S', 'deit-small_4xb256_in1k', None, 1761),
        Reported('HiViT-T', 'hivit-tiny-p16_16xb64_in1k', None, 1393),
        Reported('XCiT-S24', 'xcit-small-24-p16_3rdparty_in1k', None, 671),
        Reported('Vim-S', _config('vim-s', 'comparison'), 80.5, 811),
        Reported('S4ND-ConvNeXt-T', _config('s4nd-convnext-t', 'comparison'), None, 683),
        Reported('VMamba-T (s1l8)', TINY, 82.60, 1686, 571, 47.3, 47.9),
        Reported('VMamba-T (s2l5)', TINY_S2L5, 82.49, 1340, 464, 47.4, 48.3),
        Reported('VMamba-S (s2l15)', _config('vmamba-s'), 83.65, 877, 314, 48.7, 50.6),
        Reported('VMamba-S (s1l20)', _config('vmamba-s-s1l20'), 83.34, 1106, 390),
        Reported('VMamba-B (s2l15)', _config('vmamba-b'), 83.88, 646, 247, 49.2, 51.0),
        Reported('VMamba-B (s1l20)', _config('vmamba-b-s1l20'), 83.79, 827, 313),
        Reported('Vanilla-VMamba-T', VANILLA, 82.17, 638, 195, 46.5, 47.3),
        Reported('Vanilla-VMamba-S', _config('vanilla-vmamba-s'), 83.46, 359, 111, 48.2, 49.5),
        Reported('Vanilla-VMamba-B', _config('vanilla-vmamba-b'), 83.73, 268, 84, 48.6, 50.0),
    ),
    'scan': (
        Reported('unidirectional', _ablation('_scan-unidirectional'), 82.26),
        Reported('bidirectional', _ablation('_scan-bidirectional'), 82.49),
        Reported('cascade', _ablation('_scan-cascade'), 82.42),
        Reported('cross', TINY, 82.60),
        Reported('unidirectional, no dwconv', _ablation('_scan-unidirectional-nodwconv'), 80.88),
        Reported('bidirectional, no dwconv', _ablation('_scan-bidirectional-nodwconv'), 81.80),
        Reported('cascade, no dwconv', _ablation('_scan-cascade-nodwconv'), 81.71),
        Reported('cross, no dwconv', _ablation('_scan-cross-nodwconv'), 82.25),
    ),
    'orders': (  # not in the paper
        Reported('cross', TINY, 82.60),
        Reported('diagonal', _ablation('_scan-diagonal')),
        Reported('snake', _ablation('_scan-snake')),
        Reported('local window', _ablation('_scan-window')),
        Reported('Hilbert', _ablation('_scan-hilbert')),
    ),
    'init': (
        Reported('mamba', TINY, 82.60),
        Reported('random', _ablation('_init-random'), 82.58),
        Reported('zero', _ablation('_init-zero'), 82.67),
    ),
    'd_state': (
        Reported('d_state 1, ssm_ratio 2', TINY_S2L5, 82.49),
        Reported('d_state 2, ssm_ratio 2', _ablation('-s2l5_dstate-2'), 82.50),
        Reported('d_state 4, ssm_ratio 2', _ablation('-s2l5_dstate-4'), 82.51),
        Reported('d_state 8, ssm_ratio 1.5', _ablation('-s2l5_dstate-8'), 82.69),
        Reported('d_state 16, ssm_ratio 1', _ablation('-s2l5_dstate-16'), 82.31),
    ),
    'ratios': (
        Reported('mlp_ratio 4, ssm_ratio 1', TINY, 82.60),
        Reported('mlp_ratio 3, ssm_ratio 1.5', _ablation('_mlp3-ssm1.5'), 82.75),
        Reported('mlp_ratio 2, ssm_ratio 2.5', _ablation('_mlp2-ssm2.5'), 82.86),
    ),
    'activation': (
        Reported('SiLU', TINY, 82.60),
        Reported('GELU', _ablation('_act-gelu'), 82.53),
        Reported('ReLU', _ablation('_act-relu'), 82.65),
    ),
    'out_norm': (
        Reported('LayerNorm', TINY, 82.60),
        Reported('none', _ablation('_outnorm-none')),
        Reported('dwconv 3x3', _ablation('_outnorm-dwconv3')),
        Reported('LayerNorm, dwconv 3x3', _ablation('_outnorm-ln-dwconv3')),
        Reported('softmax over space', _ablation('_outnorm-softmax')),
        Reported('sigmoid', _ablation('_outnorm-sigmoid')),
    ),
    # Steps a, b and c changed the code, not the model.
    'steps': (
        Reported('vanilla', VANILLA, 82.17, 426, 138),
        Reported('a: fused cross-scan', VANILLA, 82.17, 467, 165),
        Reported('b: half in, float out', VANILLA, 82.17, 464, 184),
        Reported('c: linear, channels first', VANILLA, 82.17, 638, 195),
        Reported('d: MLP, no dwconv, 2-2-2-2', _ablation('_step-d'), 81.65, 813, 248),
        Reported('d.1: ssm_ratio 1', _ablation('_step-d1'), 81.05, 1336, 405),
        Reported('d.2: 2-2-5-2', _ablation('_step-d2'), 82.24, 1137, 348),
        Reported('e: no gate', _ablation('_step-e'), 82.17, 1179, 360),
        Reported('e.1: dwconv', _ablation('_step-e1'), 82.31, 1164, 358),
        Reported('e.2: d_state 1', _ablation('_step-e2'), 81.87, 1942, 647),
        Reported('f: ssm_ratio 2', TINY_S2L5, 82.49, 1340, 464),
        Reported('g: ssm_ratio 1, 2-2-8-2', TINY, 82.60, 1686, 571),
    ),
}
