import pytest
import torch

pytest.importorskip('mmengine')

from mmvmamba.models import VMamba

ARCH = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))


@pytest.mark.parametrize(
    'memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc']
)
def test_outputs_are_contiguous(memory_format):
    images = torch.randn(2, 3, 65, 97).contiguous(memory_format=memory_format)
    assert all(out.is_contiguous() for out in VMamba(ARCH)(images))


def test_roi_align_reads_the_outputs_right():
    ops = pytest.importorskip('mmcv.ops')
    out = VMamba(ARCH)(torch.randn(2, 3, 64, 64))[0]
    # All of the second image, one bin, one sample in its middle: the mean of four pixels there.
    roi = torch.tensor([[1.0, 0.0, 0.0, 64.0, 64.0]])
    value = ops.roi_align(out, roi, 1, 0.25, 1, 'avg', True)
    torch.testing.assert_close(value[0, :, 0, 0], out[1, :, 7:9, 7:9].mean((1, 2)))
