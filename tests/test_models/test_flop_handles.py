"""The scans in MMEngine's counters and in the tools of mmdet, mmseg and mmpretrain."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import mmvmamba
import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)
from mmvmamba.analysis.flops import count_multiply_adds
from mmvmamba.analysis.model_flops import count_config
from mmvmamba.ops import has_kernel, selective_scan, ss2d_scan
from mmvmamba.ops.flops import selective_scan_cost, ss2d_scan_cost

ROOT = Path(__file__).parents[2]
STOCK = {
    'mmdet': 'configs/retinanet/retinanet_vmamba-t_fpn_1x_coco.py',
    'mmseg': 'configs/upernet/vmamba-t_upernet_8xb2-160k_ade20k-512x512.py',
    'mmpretrain': 'configs/vmamba/vmamba-t_8xb128_in1k.py',
}
slow = pytest.mark.slow
needs_native = pytest.mark.skipif(
    not has_kernel('ss2d_scan', 'cpu'), reason='the native extension is not built'
)
#: The kernel, and PyTorch's own ops in its place.
BACKENDS = pytest.mark.parametrize(
    'backend', [pytest.param('native', marks=needs_native), 'reference']
)
THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ('settings', 'backend'),
    [
        pytest.param({}, 'native', marks=needs_native),
        ({}, 'reference'),
        pytest.param(dict(scan='cascade'), 'native', marks=needs_native),
        (dict(scan='cascade'), 'reference'),
        pytest.param(dict(arch='vanilla_tiny'), 'native', marks=needs_native),
        pytest.param(dict(arch='vanilla_tiny'), 'reference', marks=slow),
        pytest.param(dict(out_norm='dwconv3'), 'native', marks=[needs_native, slow]),
        pytest.param(dict(out_norm='dwconv3'), 'reference', marks=slow),
    ],
)
def test_mmengine_counts_the_same(settings, backend):
    from mmengine.registry import MODELS

    model = MODELS.build(dict(type='mmvmamba.VMamba', backend=backend, **(settings | THIN))).eval()
    image = torch.rand(1, 3, 40, 48)
    result = get_model_complexity_info(model, inputs=(image,), show_table=False, show_arch=False)
    assert result['flops'] == count_multiply_adds(model, image).total


@BACKENDS
@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize('gate', [False, True])
def test_selective_scan_is_counted(skip, gate, backend):
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C, D=None, z=None):
            skip_and_gate = (D if skip else None, z if gate else None)
            return selective_scan(u, delta, A, B, C, *skip_and_gate, backend=backend)

    u = torch.rand(2, 4, 9)
    states = torch.rand(2, 3, 9)
    inputs = (u, u, -torch.rand(4, 3), states, states, torch.rand(4), u)
    result = get_model_complexity_info(Scan(), inputs=inputs, show_table=False, show_arch=False)
    expected = u.numel() * (9 * 3 + skip + gate)
    assert result['flops'] == expected == selective_scan_cost(u.shape, (4, 3), skip, gate)
    assert count_multiply_adds(Scan(), *inputs).total == expected
    leaf = u.clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        Scan()(leaf, *inputs[1:]).sum().backward()
    assert counter.get_total_flops() == 2 * expected * 3  # a backward is two forwards


@pytest.mark.parametrize('gate', [False, True])
def test_triton_ops_are_counted(gate):
    """On the meta device, where they need no kernel."""

    class Scans(torch.nn.Module):
        def forward(self, x, proj, weights, u, A, B):
            z = u if gate else None
            y = selective_scan(u, u, A, B, B, z=z, backend='triton')
            return ss2d_scan(x, proj, *weights, backend='triton'), y

    def empty(*shape):
        return torch.empty(shape, device='meta')

    weights = (empty(4, 16, 1), empty(4, 16), empty(4, 16, 2), empty(4, 16))
    inputs = (empty(1, 3, 5, 16), empty(1, 3, 5, 4, 5), weights, empty(2, 4, 9), empty(4, 3))
    inputs += (empty(2, 3, 9),)
    result = get_model_complexity_info(Scans(), inputs=inputs, show_table=False, show_arch=False)
    expected = ss2d_scan_cost((1, 3, 5, 16), (4, 16, 1), (4, 16, 2))
    expected += selective_scan_cost((2, 4, 9), (4, 3), False, gate)
    assert result['flops'] == count_multiply_adds(Scans(), *inputs).total == expected


def run_tool(folder, *arguments, **env):
    environment = dict(os.environ, OMP_NUM_THREADS='1', **env)
    command = [sys.executable, *map(str, arguments)]
    how = dict(capture_output=True, text=True, cwd=folder, env=environment)
    return subprocess.run(command, **how)


def one_image(cfg, folder):
    """The tool of mmdet counts the images of the validation data."""
    Image.new('RGB', (128, 128)).save(folder / '0.jpg')
    images = [dict(id=0, file_name='0.jpg', width=128, height=128)]
    coco = dict(images=images, annotations=[], categories=[dict(id=1, name='person')])
    (folder / 'coco.json').write_text(json.dumps(coco))
    dataset = cfg.val_dataloader.dataset
    dataset.update(data_root=str(folder), ann_file='coco.json', data_prefix=dict(img=''))
    dataset.pipeline[1].scale = (128, 128)
    cfg.val_dataloader.update(num_workers=0, persistent_workers=False)


def stock_cases():
    """mmdet's with the native op is quick enough for every run of the tests."""
    for package in STOCK:
        for native in (True, False):
            marks = [needs_native] if native else []
            if (package, native) != ('mmdet', True):
                marks.append(slow)
            yield pytest.param(package, native, marks=marks)


@pytest.mark.parametrize(('package', 'native'), list(stock_cases()))
def test_stock_tools(package, native, stock_launcher, tmp_path):
    folder = Path(importlib.util.find_spec(package).origin).parent
    cfg = Config.fromfile(ROOT / STOCK[package])
    cfg.model.backbone.init_cfg = None
    size = ('--shape', 128, 128)
    if package == 'mmdet':
        one_image(cfg, tmp_path)
        size = ('--num-images', 1)
    counted = count_config(cfg, (128, 128))
    expected = counted.flops
    if package == 'mmpretrain':
        expected -= 768 * 1000  # it leaves the head out
    # Resolved, as these tools cannot know where the forks keep the bases of mmseg.
    cfg.dump(tmp_path / 'config.py')
    env = {}
    if not native:
        ignored = shutil.ignore_patterns('_C*', '_build_info*.py', '.mim', '__pycache__')
        shutil.copytree(Path(mmvmamba.__file__).parent, tmp_path / 'mmvmamba', ignore=ignored)
        env['PYTHONPATH'] = str(tmp_path)
    tool = folder / '.mim/tools/analysis_tools/get_flops.py'
    result = run_tool(tmp_path, *stock_launcher, tool, tmp_path / 'config.py', *size, **env)
    assert result.returncode == 0, result.stderr
    assert ('no native kernel' in result.stderr) == (not native)
    assert counted.by_op['ss2d_scan'] > 1e7  # ten units of the last digit that is printed
    assert f'Flops: {expected / 1e9:.3f}'.rstrip('0') + 'G' in result.stdout
