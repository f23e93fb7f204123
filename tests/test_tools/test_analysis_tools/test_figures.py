"""Options, devices and images of the tools."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ...analysis_tools import load

figures = load('figures')


def test_a_photograph_is_read_upright(tmp_path):
    """Taken with the camera turned: the file lies on its side, and its EXIF data says so."""
    image = Image.fromarray(np.uint8([[[255, 0, 0], [0, 0, 255]]]))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / 'turned.png', exif=exif)
    upright = figures.read_image(tmp_path / 'turned.png')
    assert upright.size == (1, 2)
    assert [upright.getpixel((0, y)) for y in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


def set_up(device):
    args = argparse.Namespace(out=Path('x.png'), seed=0, device=device)
    figures.set_up(args)
    return args.device


def test_the_gpu_that_is_named_is_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, 'empty', lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    device = set_up('cuda:1')
    assert chosen == [device] == [torch.device('cuda:1')]
    for name in ('cpu', 'cuda'):
        set_up(name)
    assert len(chosen) == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_the_last_gpu_is_the_current_one():
    before, last = torch.cuda.current_device(), torch.cuda.device_count() - 1
    try:
        assert set_up(f'cuda:{last}').index == torch.cuda.current_device() == last
    finally:
        torch.cuda.set_device(before)
