"""Helpers of the tests of the export to ONNX."""

import inspect

import pytest
import torch

from mmvmamba.ops import extension_error

#: Marks of a test that exports.
NEEDS_EXPORTER = [
    pytest.mark.skipif(extension_error() is not None, reason='the op is not there'),
    pytest.mark.skipif(
        'custom_translation_table' not in inspect.signature(torch.onnx.export).parameters,
        reason="this torch's exporter translates no ops of others",
    ),
]


def op_types(graph):
    """Domain and name of each node, those inside others too."""
    for node in graph.node:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            yield from op_types(attribute.g)
