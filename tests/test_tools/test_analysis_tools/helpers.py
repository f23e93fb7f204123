"""Models that the tests of the tools share, and what a tool wrote."""

import csv
import json

import pytest
import torch
from PIL import Image

THIN = 'tiny+dims=(8,16,24,32)+depths=(1,1,1,1)'
HEAD = {'date', 'device', 'machine', 'versions', 'tool'}
#: Models of the paper's figures.
PAPERS = (
    'resnet50_8xb32_in1k',
    'convnext-tiny_32xb128_in1k',
    'swin-tiny_16xb64_in1k',
    'swin-tiny_16xb64_in1k+window_size=scaled',
    'deit-small_4xb256_in1k',
    'hivit-tiny-p16_16xb64_in1k',
    'mmvmamba::comparison/vim-s_8xb128_in1k.py',
    'tiny',
)
ONE_ROUND = ('--seconds', 0, '--min-rounds', 1, '--batch-size', 1, '--size', '64')
SPEEDS = ('inference_images_per_s', 'train_images_per_s')
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


def read(path, tool):
    """The numbers beside a picture, which is there and not empty, and in the rows of a table."""
    with Image.open(path.with_suffix('.png')) as image:
        assert image.format == 'PNG' and len(image.convert('RGB').getcolors(2**24)) > 20
    numbers = json.loads(path.with_suffix('.json').read_text())
    assert HEAD <= set(numbers) and numbers['tool'] == tool
    if tool == 'compare_throughput':
        with path.with_suffix('.csv').open(newline='') as file:
            table = list(csv.DictReader(file))
        assert [row['name'] for row in table] == [row['name'] for row in numbers['results']]
        assert set(table[0]) == set(numbers['results'][0])
    return numbers
