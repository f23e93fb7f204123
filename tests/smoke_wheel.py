"""Smoke test of an installed wheel: ops, a classifier, a step of Mask R-CNN and `mmvmamba.info`.

It needs no file of the repository, and OpenMMLab for Mask R-CNN alone::

    python smoke_wheel.py                # --skip-detector where mmdet is not installed
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import mmvmamba
from mmvmamba.ops import extension_error, has_kernel, ss2d_scan
from mmvmamba.ops.extension import build_info


def parse_args():
    parser = argparse.ArgumentParser(description='Smoke test of an installed wheel.')
    parser.add_argument('--skip-detector', action='store_true', help='leave Mask R-CNN out')
    return parser.parse_args()


def check_op(device):
    """Compare the native kernels, forward and backward, with the reference."""
    torch.manual_seed(0)
    shapes = dict(x=(2, 7, 9, 6), proj=(2, 7, 9, 4, 5), dt_weight=(4, 6, 3), dt_bias=(4, 6))
    inputs = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    inputs.update(A=-torch.rand(4, 6, 1, device=device), D=torch.ones(4, 6, device=device))
    results = []
    for backend in ('native', 'reference'):
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        out = ss2d_scan(**leaves, backend=backend)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def check_classifier(device):
    """Take a training step and classify."""
    net = mmvmamba.create_model('vmamba_tiny', pretrained=False, num_classes=3).to(device)
    optimizer = torch.optim.AdamW(net.parameters())
    loss = net(torch.randn(2, 3, 64, 96, device=device)).logsumexp(1).sum()
    loss.backward()
    optimizer.step()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    with torch.inference_mode():
        assert net.eval()(torch.randn(1, 3, 64, 64, device=device)).shape == (1, 3)


def check_detector(device):
    """Take a training step of the demo's Mask R-CNN on random data, and predict."""
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.optim import OptimWrapper
    from mmengine.registry import MODELS, init_default_scope

    mim = Path(mmvmamba.__file__).parent / '.mim'
    cfg = Config.fromfile(mim / 'configs/demo/mask-rcnn_vmamba-demo_fpn_demo.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model).to(device)
    model.init_weights()
    shapes = [(3, 160, 160), (3, 128, 160)]
    data = demo_mm_inputs(2, shapes, num_classes=4, with_mask=True, device=device)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters()))
    losses = model.train().train_step(data, optimizer)
    assert losses['loss'].isfinite(), losses
    results = model.eval().test_step(data)
    assert len(results) == 2 and all('masks' in result.pred_instances for result in results)


def main():
    args = parse_args()
    print(f'mmvmamba {mmvmamba.__version__} from {Path(mmvmamba.__file__).parent}')
    assert has_kernel('ss2d_scan', 'cpu'), extension_error()
    built, found = build_info().get('cuda') or 'none', torch.version.cuda or ''
    if built.split('.')[0] == found.split('.')[0]:
        # The CUDA library loads without a GPU as well.
        assert has_kernel('ss2d_scan', 'cuda'), extension_error('cuda')
    checks = [check_op, check_classifier] + ([] if args.skip_detector else [check_detector])
    for device in ['cpu'] + (['cuda'] if torch.cuda.is_available() else []):
        for check in checks:
            check(device)
            print(f'passed: {check.__name__} on {device}', flush=True)
    # In a folder without a `mmvmamba` of its own, which would be found first.
    command = [sys.executable, '-m', 'mmvmamba.info']
    subprocess.run(command, cwd=tempfile.gettempdir(), check=True)


if __name__ == '__main__':
    main()
