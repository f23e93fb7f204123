"""timm's scripts run with the models, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmvmamba

pytest.importorskip('timm')
ROOT = Path(__file__).parents[2]
#: timm's wheel has no train.py: a clone of its repository has, and validate.py beside it.
TRAIN = os.environ.get('MMVMAMBA_TIMM_TRAIN')
SCRIPT = """
import sys
import timm
from neighbor import VALUE

assert __name__ == '__main__' and VALUE == 3
print(sys.argv, timm.is_model('vmamba_tiny'))
"""
THIN = ('dims=(16,32,48,64)', 'depths=(1,1,1,1)')


def run(*args, cwd, launcher=('-m', 'mmvmamba.timm')):
    env = dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    command = [sys.executable, *launcher, *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
    )


def test_a_script_runs_as_if_by_its_path(tmp_path):
    (tmp_path / 'scripts').mkdir()
    script = tmp_path / 'scripts' / 'script.py'
    script.write_text(SCRIPT)
    (tmp_path / 'scripts' / 'neighbor.py').write_text('VALUE = 3')
    result = run(script, 'DATA', '--model', 'vmamba_tiny', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    want = [str(script), 'DATA', '--model', 'vmamba_tiny']
    assert result.stdout.strip() == f'{want} True'


@pytest.mark.parametrize(
    ('args', 'words'),
    [((), 'usage'), (('--model', 'x'), 'usage'), (('nowhere.py',), "a file, but got 'nowhere.py'")],
)
def test_no_script(args, words, monkeypatch):
    from mmvmamba.timm.__main__ import main

    monkeypatch.setattr(sys, 'argv', ['mmvmamba.timm', *args])
    with pytest.raises(SystemExit, match=words):
        main()


needs_script = pytest.mark.skipif(
    TRAIN is None,
    reason="timm's train.py is not in its wheel: set MMVMAMBA_TIMM_TRAIN to that of a clone",
)


@pytest.mark.slow
@needs_script
def test_options_in_the_docs(tmp_path):
    text = (ROOT / 'docs' / 'timm.md').read_text().replace('\\\n', ' ')
    commands = re.findall(r'^.*mmvmamba\.timm train\.py (.*)$', text, re.MULTILINE)
    assert len(commands) == 3
    result = run(Path(TRAIN).resolve(), '--help', cwd=tmp_path)
    known = set(re.findall(r'(?<![\w-])--?[a-z][\w-]*', result.stdout))
    for command in commands:
        options = re.findall(r'(?<=\s)--?[a-z][\w-]*', command)
        assert len(options) > 5 and set(options) <= known, set(options) - known


@pytest.mark.slow
@needs_script
def test_export_script(tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model = mmvmamba.create_model('vmamba_tiny', num_classes=10)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    script = Path(TRAIN).resolve().with_name('onnx_export.py')
    options = ('--num-classes', 10, '--checkpoint', 'weights.pth', '--check-forward')
    arguments = (script, 'vmamba.onnx', '--model', 'vmamba_tiny', *options)
    result = run(*arguments, '--dynamo', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'vmamba.onnx').stat().st_size > 1e8
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().endswith('the TorchScript exporter does not support the scan')


@pytest.fixture(scope='module')
def crops(tmp_path_factory):
    """The demo data in its classification form: six classes in train and val."""
    pytest.importorskip('skimage')
    folder = tmp_path_factory.mktemp('demo')
    maker = ROOT / 'tools' / 'dataset_converters' / 'make_demo_dataset.py'
    sizes = ('--num-train', 60, '--num-val', 30, '--size', 96)
    result = run(maker, 'data', *sizes, cwd=folder, launcher=())
    assert result.returncode == 0, result.stderr
    return folder / 'data' / 'crops'


@pytest.mark.slow
@needs_script
@pytest.mark.parametrize('way', ['runner', 'device modules'])
def test_train_script(way, crops, tmp_path):
    launcher = () if way == 'device modules' else ('-m', 'mmvmamba.timm')
    modules = ('--device-modules', 'mmvmamba.timm') if way == 'device modules' else ()
    result = run(
        *(Path(TRAIN).resolve(), crops, '--model', 'vmamba_tiny', '--model-kwargs', *THIN),
        *('--num-classes', 6, '--img-size', 32, '--batch-size', 16, '--epochs', 8),
        *('--warmup-epochs', 0, '--opt', 'adamw', '--lr', 3e-3, '--layer-decay', 0.9),
        *('--device', 'cpu', '--workers', 0, '--output', 'out', '--experiment', 'one', *modules),
        cwd=tmp_path,
        launcher=launcher,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    rows = (tmp_path / 'out/one/summary.csv').read_text().split()
    assert len(rows) == 9 and 'eval_top1' in rows[0]
    last = dict(zip(rows[0].split(','), rows[-1].split(','), strict=True))
    # A quarter of the crops are of the most frequent class.
    assert float(last['eval_top1']) > 50.0
    checkpoint = tmp_path / 'out/one/last.pth.tar'
    result = run(
        *(Path(TRAIN).resolve().with_name('validate.py'), crops / 'val', '--model', 'vmamba_tiny'),
        *('--model-kwargs', *THIN, '--num-classes', 6, '--img-size', 32, '--device', 'cpu'),
        *('--workers', 0, '--checkpoint', checkpoint),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    top1 = float(re.search(r'"top1": ([\d.]+)', result.stdout)[1])
    assert top1 == pytest.approx(float(last['eval_top1']), abs=2.0)
    # What timm's script writes is a file of this package too.
    net = mmvmamba.create_model(
        'vmamba_tiny',
        pretrained=checkpoint,
        num_classes=6,
        dims=(16, 32, 48, 64),
        depths=(1, 1, 1, 1),
    )
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    assert torch.equal(net.classifier.head.weight, state['classifier.head.weight'])
