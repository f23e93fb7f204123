"""Kinds and values of single tensors."""

import pytest
import torch
from torch import nn

from mmvmamba.checkpoint.tensors import (
    count_non_finite,
    kind_of_dtype,
    same_shape,
    shown,
    unusable,
)

INF, NAN = float('inf'), float('nan')
PARTS = [torch.zeros(2), torch.zeros(3)]
#: Tensors by the words that describe them.
UNUSABLE = {
    'a list': [1.0],
    'a nested tensor': torch.nested.nested_tensor(PARTS, layout=torch.jagged),
    'an MKL-DNN tensor': torch.zeros(4).to_mkldnn(),
    'a sparse tensor (torch.sparse_coo)': torch.eye(3).to_sparse(),
    'a sparse tensor (torch.sparse_csr)': torch.eye(3).to_sparse_csr(),
    'a quantized tensor (torch.qint8)': torch.quantize_per_tensor(
        torch.zeros(3), 1.0, 0, torch.qint8
    ),
    'a meta tensor, which has no data': torch.zeros(3, device='meta'),
    'a tensor of packed values (torch.uint4)': torch.empty(3, dtype=torch.uint4),
    'a tensor of packed values (torch.bits8)': torch.empty(3, dtype=torch.bits8),
    'a tensor of 4294967296 bytes that repeats 4 bytes of data': torch.zeros(1).expand(2**30),
}


@pytest.mark.parametrize('words', list(UNUSABLE))
def test_tensors_that_cannot_be_loaded(words):
    assert unusable(UNUSABLE[words]) == words
    assert not same_shape(UNUSABLE[words], torch.zeros(3))


@pytest.mark.parametrize(
    'value',
    [
        torch.zeros(0),
        torch.zeros(()),
        torch.zeros(2, 3).t(),
        torch.zeros(1).expand(5),
        nn.Parameter(torch.zeros(2)),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(2, dtype=torch.uint16),
    ],
)
def test_tensors_that_can_be_loaded(value):
    assert unusable(value) == ''
    assert same_shape(value, value)
    assert not same_shape(value, torch.zeros(7))


@pytest.mark.parametrize(
    ('kind', 'dtypes'),
    [
        ('floating point', 'float32 float16 bfloat16 float8_e5m2'),
        ('integer', 'uint8 int8 int16 int32 int64 uint64'),
        ('bool', 'bool'),
        ('complex', 'complex64 complex32'),
    ],
)
def test_kinds_of_dtypes(kind, dtypes):
    assert {kind_of_dtype(getattr(torch, name)) for name in dtypes.split()} == {kind}


@pytest.mark.parametrize(
    ('values', 'given', 'dtype', 'count'),
    [
        ([1.0, NAN, INF, -INF], 'float32', 'float32', 3),
        ([INF, -INF], 'float32', 'float32', 2),
        ([1.0, 2.0], 'float32', 'float32', 0),
        ([3e38, 3e38], 'float32', 'float32', 0),  # the sum overflows
        ([1.0, 7e4], 'float32', 'float16', 1),
        ([6e4, 6e4], 'float16', 'float16', 0),
        ([6e4, NAN], 'float16', 'float32', 1),
        ([1.0, NAN], 'float32', 'float8_e4m3fn', 1),
        ([1.0, NAN], 'complex64', 'complex64', 1),
        ([1.0, 2.0], 'int64', 'int64', 0),
        ([], 'float32', 'float32', 0),
    ],
)
def test_values_that_are_not_finite(values, given, dtype, count):
    value = torch.tensor(values, dtype=getattr(torch, given))
    assert count_non_finite(value, getattr(torch, dtype)) == count


@pytest.mark.parametrize(
    ('key', 'text'),
    [('a.b', 'a.b'), ('a\nb', r"'a\nb'"), ('\ud800', r"'\ud800'"), ('x' * 200, 'x' * 117 + '...')],
)
def test_names_in_messages(key, text):
    assert shown(key) == text
