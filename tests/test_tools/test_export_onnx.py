"""tools/deployment/export_onnx.py for the three tasks, checked by ONNX Runtime."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmvmamba.registry  # noqa: F401  (resolves mmvmamba::)
from mmvmamba.nn import VMambaNet

from ..test_ops.onnx_graphs import NEEDS_EXPORTER, op_types

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
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
    """Run the tool in this process; return its exit status and output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name='__main__')
        return stop.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def weights(request, tmp_path):
    """Make the config and a checkpoint of a task, with nontrivial BatchNorm statistics."""

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


def expected(config, checkpoint, images, task):
    """Return the outputs of the model by the packages' own calls."""
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
    pytestmark = NEEDS_EXPORTER

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
        assert largest(r'normalized (\S+)', out + err) < 1e-4
        assert re.search(r'ONNX Runtime [\d.]+ ms, PyTorch [\d.]+ ms', out + err)


def largest(pattern, text):
    return max(float(found) for found in re.findall(pattern, text))


def products_in_half(graph):
    """Return by op type whether each product or convolution takes float16."""
    half = {v.name for v in graph.initializer if v.data_type == onnx.TensorProto.FLOAT16}
    for node in graph.node:
        if node.op_type == 'Cast' and node.attribute[0].i == onnx.TensorProto.FLOAT16:
            half.update(node.output)
    found = {}
    for node in graph.node:
        if node.op_type in ('Conv', 'Gemm', 'MatMul'):
            found.setdefault(node.op_type, []).append(set(node.input) <= half)
    return found


class TestOneModel:
    pytestmark = NEEDS_EXPORTER

    @pytest.mark.slow
    @pytest.mark.parametrize('options', [(), ('--dynamic',)], ids=str)
    def test_backbone_of_other_channels(self, options, classification_config, run_tool, tmp_path):
        config = tmp_path / 'config.py'
        config.write_text(
            f"_base_ = '{classification_config}'\nmodel = dict(backbone=dict(in_channels=4))\n"
        )
        cfg = Config.fromfile(config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model).eval()
        torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
        size = ('--shape', '64', '96', '--part', 'backbone')
        code, _, err = run_tool(config, 'weights.pth', 'model.onnx', *size, *options)
        assert code == 0, err
        session = ort.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])
        assert [value.name for value in session.get_outputs()] == ['map0']
        for shape in ((1, 4, 64, 96), *([(2, 4, 75, 50)] if options else [])):
            images = torch.randn(*shape)
            (got,) = session.run(None, {'images': images.numpy()})
            with torch.no_grad():
                (want,) = model.backbone(images)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

    def test_half_precision_is_finite(self, weights, run_tool, tmp_path):
        """The scan's sums exceed the largest float16, 65504."""
        config, checkpoint = weights('classification')
        content = torch.load(checkpoint, weights_only=True)
        for name, value in content['state_dict'].items():
            if name.endswith('.Ds'):
                value.fill_(1e7)
        torch.save(content, checkpoint)
        options = (
            '--shape',
            '64',
            '96',
            '--fp16',
            '--check',
        )  # --check rejects values that are not finite
        code, out, err = run_tool(config, checkpoint, 'half.onnx', *options)
        assert code == 0, err
        assert largest(r'normalized (\S+)', out + err) < 0.05
        graph = onnx.load(tmp_path / 'half.onnx').graph
        weights_in_half = [v for v in graph.initializer if v.data_type == onnx.TensorProto.FLOAT16]
        assert len(weights_in_half) > 20
        assert [value.name for value in graph.output] == ['scores']
        assert all(v.type.tensor_type.elem_type == 1 for v in (*graph.input, *graph.output))

    def test_custom_op(self, weights, run_tool, tmp_path):
        """The tool reports its phases, and --check registers the op."""
        options = ('--custom-op', '--shape', '64', '96', '--check')
        code, out, err = run_tool(*weights('classification'), 'model.onnx', *options)
        assert code == 0, err
        assert largest(r'normalized (\S+)', out + err) < 1e-4
        assert re.search('Optimize the ONNX graph', out)
        assert re.search(r'exported in \d+ s', out)
        ops = set(op_types(onnx.load(tmp_path / 'model.onnx').graph))
        assert ('mmvmamba', 'SS2DScan') in ops and ('', 'Scan') not in ops

    @pytest.mark.slow
    def test_half_precision_of_any_size(self, weights, run_tool, tmp_path):
        """Scans and average pooling keep their products in float32."""
        config, checkpoint = weights('segmentation')
        code, _, err = run_tool(config, checkpoint, 'half.onnx', '--fp16', '--dynamic')
        assert code == 0, err
        found = products_in_half(onnx.load(tmp_path / 'half.onnx').graph)
        # Four directions of each of four blocks, and rows and columns of three pooled sizes; the
        # fourth, one position, is a mean.
        assert found['MatMul'].count(False) == 4 * 4 + 3 * 2
        assert found['MatMul'].count(True) >= 4 * 4 and all(found['Conv'])
        session = ort.InferenceSession('half.onnx', providers=['CPUExecutionProvider'])
        for shape in ((1, 3, 64, 96), (2, 3, 75, 50)):
            images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
            (got,) = session.run(None, {'images': images.numpy()})
            (want,) = expected(config, checkpoint, images, 'segmentation')
            assert np.abs(got - want.numpy()).max() < 0.05 * float(want.std())


#: OpenMMLab and torchvision cannot be imported; a network by name is a thin one.
TORCH_ALONE = """
import runpy, sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'timm'):
    sys.modules[name] = None
from mmvmamba.nn import ARCHS, Arch
ARCHS['tiny'] = Arch(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def run_alone(*arguments, cwd):
    command = [sys.executable, '-c', TORCH_ALONE, TOOL, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


class TestNetworkByNameWithTorchAlone:
    pytestmark = NEEDS_EXPORTER

    @pytest.mark.parametrize('part', ['whole', 'backbone'])
    def test_export(self, part, tmp_path):
        torch.manual_seed(0)
        net = VMambaNet(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=5).eval()
        torch.save({'model': net.state_dict()}, tmp_path / 'weights.pth')
        options = ('--part', part, '--shape', '64', '96', '--check')
        result = run_alone('vmamba_tiny', 'weights.pth', 'm.onnx', *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f'm.onnx: {part} of vmamba_tiny, exported' in result.stdout
        assert largest(r'normalized (\S+)', result.stdout) < 1e-3
        session = ort.InferenceSession(tmp_path / 'm.onnx', providers=['CPUExecutionProvider'])
        images = torch.randn(1, 3, 64, 96)
        got = session.run(None, {'images': images.numpy()})
        names = [value.name for value in session.get_outputs()]
        with torch.no_grad():
            if part == 'whole':
                assert names == ['scores']
                want = [net(images)]
            else:
                assert names == ['map0', 'map1', 'map2', 'map3']
                maps = net.forward_intermediates(images, output_fmt='NHWC', intermediates_only=True)
                normed = (torch.nn.functional.layer_norm(y, y.shape[-1:]) for y in maps)
                want = [y.permute(0, 3, 1, 2) for y in normed]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('vmamba_tin', 'x.pth', 'm.onnx'), "got 'vmamba_tin'; did you mean vmamba_tiny"),
        (('vmamba_tiny', 'x.pth', 'm.onnx'), "checkpoint 'x.pth' does not exist"),
        (
            ('vmamba_tiny', 'x.pth', 'm.onnx', '--part', 'neck'),
            'for vmamba_tiny, which has no neck',
        ),
        (('my.py', 'x.pth', 'm.onnx'), "config 'my.py' needs OpenMMLab ("),
    ],
)
def test_a_mistake_with_torch_alone(arguments, message, tmp_path):
    result = run_alone(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr and not list(tmp_path.iterdir())


def test_settings_of_a_network_by_name(run_tool):
    options = ('--cfg-options', 'model.backbone.with_cp=True')
    code, _, err = run_tool('vmamba_tiny', 'x.pth', 'm.onnx', *options)
    assert code == 2 and "--cfg-options needs a config, but got the name 'vmamba_tiny'" in err


@pytest.mark.parametrize(
    ('task', 'arguments', 'message'),
    [
        ('classification', ('m.onnx', '--shape', '0', '5'), 'must be at least 1, but got 1 and [0'),
        ('classification', ('m.onnx', '--batch', '0'), 'must be at least 1, but got 0 and None'),
        pytest.param(
            'detection',
            ('m.onnx', '--part', 'whole'),
            'only the backbone and neck of a detector',
            marks=NEEDS_EXPORTER,
        ),
        pytest.param(
            'segmentation',
            ('m.onnx', '--part', 'neck'),
            'EncoderDecoder has no neck',
            marks=NEEDS_EXPORTER,
        ),
    ],
)
def test_a_mistake(task, arguments, message, weights, run_tool, tmp_path):
    code, _, err = run_tool(*weights(task), *arguments)
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob('*.onnx'))
