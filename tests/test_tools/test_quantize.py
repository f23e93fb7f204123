"""tools/deployment/quantize.py for the three tasks, with thin models."""

import contextlib
import importlib.util
import io
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmvmamba.registry  # noqa: F401  (resolves mmvmamba::)
from mmvmamba.analysis import measure
from mmvmamba.ops import extension_error

from ..test_ops.onnx_graphs import NEEDS_EXPORTER

ONNX = pytest.param(
    'onnx',
    marks=[
        *NEEDS_EXPORTER,
        pytest.mark.skipif(importlib.util.find_spec('onnxscript') is None, reason='needs onnx'),
    ],
)
INDUCTOR = pytest.param(
    'inductor',
    marks=[
        pytest.mark.skipif(extension_error() is not None, reason='the op is not there'),
        pytest.mark.skipif(importlib.util.find_spec('torchao') is None, reason='needs torchao'),
    ],
)


#: Larger images than the 32 pixels of the data.
CLASSIFICATION = """
_base_ = {base!r}
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
"""


@pytest.fixture
def run_tool(request, run_here, tmp_path):
    """Run the tool with random weights; return its exit status and stderr."""

    def run(task, *options):
        config = request.getfixturevalue(f'{task}_config')
        if task == 'classification':
            text = CLASSIFICATION.format(base=str(config))
            config = tmp_path / 'config.py'
            config.write_text(text)
        cfg = Config.fromfile(config)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
        options = ('int8', '--calibration-images', 2, *options)
        return run_here('deployment/quantize.py', config, tmp_path / 'weights.pth', *options)

    return run


@pytest.mark.parametrize('backend', [INDUCTOR, ONNX])
@pytest.mark.parametrize(
    'task',
    [
        'classification',
        pytest.param('segmentation', marks=pytest.mark.slow),
        pytest.param('detection', marks=pytest.mark.slow),
    ],
)
def test_file(task, backend, run_tool, tmp_path):
    code, err = run_tool(task, '--backend', backend)
    assert code == 0, err
    assert (tmp_path / 'int8').stat().st_size > 10000


@pytest.mark.parametrize('backend', [ONNX])
def test_file_with_the_custom_op(backend, run_tool, monkeypatch, tmp_path):
    import onnx

    monkeypatch.setattr(
        measure, 'interleave', lambda calls, *_, **__: {name: [1] for name in calls}
    )
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code, err = run_tool('classification', '--backend', backend, '--custom-op', '--check')
    assert code == 0, err
    nodes = onnx.load(tmp_path / 'int8').graph.node
    assert [node.op_type for node in nodes if node.domain == 'mmvmamba'] == ['SS2DScan'] * 4
    text = output.getvalue()
    assert 'ONNX Runtime, INT8: relative error' in text and 'OpenVINO' not in text


@pytest.mark.slow
@pytest.mark.parametrize('backend', [INDUCTOR, ONNX])
@pytest.mark.parametrize('task', ['classification', 'segmentation', 'detection'])
def test_check_and_evaluation(task, backend, run_tool):
    options = ('--backend', backend, '--check', '--shape', 64, 96, '--evaluate')
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code, err = run_tool(task, *options)
    assert code == 0, err
    text = output.getvalue()
    errors = [float(value) for value in re.findall(r'INT8: relative error .* (\S+)', text)]
    assert errors and max(errors) < 0.2
    metric = dict(classification='top1', segmentation='mIoU', detection='bbox_mAP')[task]
    assert re.search(rf'{metric}: float32 \S+, INT8 \S+, difference', text)
    assert re.search(r'float32 \S+ ms, INT8 \S+ ms, ratio', text)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--calibration-images', 0), 'must be at least 1, but got 0 and None'),
        (('--shape', 0, 5), 'must be at least 1, but got 2 and [0, 5]'),
        (('--cfg-options', 'train_dataloader=None'), 'calibration needs a train_dataloader'),
        (('--custom-op',), '--custom-op needs --backend onnx'),
        (('--part', 'neck', '--cfg-options', 'model.neck=None'), 'ImageClassifier has no neck'),
    ],
)
def test_a_mistake(options, message, run_tool, tmp_path):
    code, err = run_tool('classification', *options)
    assert code == 2 and message in err
    assert not (tmp_path / 'int8').exists()


def test_a_missing_package(run_tool, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name, *a: None if name == 'torchao' else find_spec(name, *a),
    )
    code, err = run_tool('classification')
    assert code == 2 and 'needs torchao; install it with pip install "mmvmamba[int8]"' in err
