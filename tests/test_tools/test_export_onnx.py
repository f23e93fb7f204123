"""tools/deployment/export_onnx.py for the three tasks, checked by ONNX Runtime."""

import inspect
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmvmamba.registry  # noqa: F401  (resolves mmvmamba::)
from mmvmamba.ops import load_extension

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
# The argument custom_translation_table of torch.onnx.export.
OLD = 'custom_translation_table' not in inspect.signature(torch.onnx.export).parameters
needs_exporter = [
    pytest.mark.skipif(load_extension() is not None, reason='the op is not there'),
    pytest.mark.skipif(OLD, reason="this torch's exporter translates no ops of others"),
]
TOOL = Path(__file__).parents[2] / 'tools' / 'deployment' / 'export_onnx.py'
OUTPUTS = {
    'classification': ['scores'],
    'segmentation': ['logits'],
    'detection': [f'map{i}' for i in range(5)],
}
TASKS = (
    'classification',
    pytest.param('segmentation', marks=pytest.mark.slow),
    pytest.param('detection', marks=pytest.mark.slow),
)


@pytest.fixture
def run_tool(monkeypatch, capfd, tmp_path):
    """Runs the tool in this process; returns its exit status and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name='__main__')
        return stop.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def weights(request, tmp_path):
    """The config and a checkpoint of a task, with statistics of BatchNorm that are not trivial."""

    def make(task):
        config = request.getfixturevalue(f'{task}_config')
        cfg = Config.fromfile(config)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        for name, value in model.named_buffers():
            if name.endswith(('running_mean', 'running_var')):
                value.uniform_(0.5, 1.5)
        torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
        return config, tmp_path / 'weights.pth'

    return make


def op_types(graph):
    for node in graph.node:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            yield from op_types(attribute.g)


def expected(config, checkpoint, images, task):
    """The outputs of the model as the packages' own calls give them."""
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    from mmengine.model import revert_sync_batchnorm

    model = revert_sync_batchnorm(model).eval()
    with torch.no_grad():
        if task == 'detection':
            return model.extract_feat(images)
        if task == 'classification':
            return (model.head(model.extract_feat(images)),)
        meta = dict(img_shape=tuple(images.shape[2:]), ori_shape=tuple(images.shape[2:]))
        return (model.whole_inference(images, [meta] * len(images)),)


@pytest.mark.parametrize('task', TASKS)
class TestExport:
    pytestmark = needs_exporter

    def test_any_size(self, task, weights, run_tool, tmp_path):
        config, checkpoint = weights(task)
        code, out, err = run_tool(config, checkpoint, 'out/model.onnx', '--dynamic')
        assert code == 0, err
        path = tmp_path / 'out' / 'model.onnx'
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [('', 20)]
        assert {domain for domain, _ in op_types(model.graph)} == {''}
        dims = model.graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in dims] == ['batch', 3, 'height', 'width']
        session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
        assert [value.name for value in session.get_outputs()] == OUTPUTS[task]
        for shape in ((1, 3, 64, 96), (2, 3, 128, 64), (1, 3, 75, 50)):
            images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
            got = session.run(None, {'images': images.numpy()})
            want = expected(config, checkpoint, images, task)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.std()))

    @pytest.mark.slow
    def test_fixed_size_and_check(self, task, weights, run_tool):
        arguments = ('model.onnx', '--shape', '64', '96', '--batch', '2', '--check')
        code, out, err = run_tool(*weights(task), *arguments)
        assert code == 0, err
        assert len(re.findall('largest error', out + err)) == len(OUTPUTS[task])
        assert largest(r'normalised (\S+)', out + err) < 1e-4
        assert re.search(r'ONNX Runtime [\d.]+ ms, PyTorch [\d.]+ ms', out + err)


@pytest.mark.parametrize('options', [(), ('--dynamic',)], ids=str)
class TestChannels:
    pytestmark = needs_exporter

    def test_images_of_other_channels(self, options, classification_config, run_tool, tmp_path):
        config = tmp_path / 'config.py'
        config.write_text(
            f"_base_ = '{classification_config}'\nmodel = dict(backbone=dict(in_channels=4))\n"
        )
        cfg = Config.fromfile(config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'w.pth')
        size = ('--shape', '64', '96', '--part', 'backbone')
        code, _, err = run_tool(config, 'w.pth', 'model.onnx', *size, *options)
        assert code == 0, err
        dims = onnx.load(tmp_path / 'model.onnx').graph.input[0].type.tensor_type.shape.dim
        assert dims[1].dim_value == 4


def largest(pattern, text):
    return max(float(found) for found in re.findall(pattern, text))


@pytest.mark.skipif(load_extension() is not None, reason='the op is not there')
@pytest.mark.skipif(OLD, reason="this torch's exporter translates no ops of others")
def test_half_precision_is_finite(weights, run_tool, tmp_path):
    """Where the scan's sums are beyond what float16 holds, 65504."""
    config, checkpoint = weights('classification')
    content = torch.load(checkpoint, weights_only=True)
    for name, value in content['state_dict'].items():
        if name.endswith('.Ds'):
            value.fill_(1e7)
    torch.save(content, checkpoint)
    options = ('--shape', '64', '96', '--fp16', '--check')  # which asks for finite values
    code, out, err = run_tool(config, checkpoint, 'half.onnx', *options)
    assert code == 0, err
    assert largest(r'normalised (\S+)', out + err) < 0.05
    model = onnx.load(tmp_path / 'half.onnx')
    weights_in_half = [
        v for v in model.graph.initializer if v.data_type == onnx.TensorProto.FLOAT16
    ]
    assert len(weights_in_half) > 20
    assert [value.name for value in model.graph.output] == ['scores']
    assert all(v.type.tensor_type.elem_type == 1 for v in (*model.graph.input, *model.graph.output))


@pytest.mark.parametrize(
    ('task', 'arguments', 'message'),
    [
        ('classification', ('model.pth',), "out must end with .onnx, but got 'model.pth'"),
        ('classification', ('m.onnx', '--shape', '0', '5'), '--shape must be a height and a width'),
        ('classification', ('m.onnx', '--batch', '0'), '--batch must be at least 1, but got 0'),
        ('detection', ('m.onnx', '--part', 'whole'), 'of a detector the backbone and neck'),
        ('segmentation', ('m.onnx', '--part', 'neck'), 'EncoderDecoder has no neck'),
    ],
)
def test_a_mistake(task, arguments, message, weights, run_tool, tmp_path):
    code, _, err = run_tool(*weights(task), *arguments)
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob('*.onnx'))
