"""timm's scripts run with the models, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmvmamba

pytest.importorskip('timm')
#: timm's wheel has no train.py: a clone of its repository has.
TRAIN = os.environ.get('MMVMAMBA_TIMM_TRAIN')
SCRIPT = """
import sys
import timm
from neighbour import VALUE

assert __name__ == '__main__' and VALUE == 3
print(sys.argv, timm.is_model('vmamba_tiny'))
"""
THIN = ('dims=(8,16,24,32)', 'depths=(1,1,1,1)')


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
    (tmp_path / 'scripts' / 'neighbour.py').write_text('VALUE = 3')
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
    TRAIN is None, reason="MMVMAMBA_TIMM_TRAIN does not name timm's train.py"
)


@pytest.mark.slow
@needs_script
def test_options_in_the_docs(tmp_path):
    text = (Path(__file__).parents[2] / 'docs' / 'timm.md').read_text().replace('\\\n', ' ')
    commands = re.findall(r'^.*mmvmamba\.timm train\.py (.*)$', text, re.MULTILINE)
    assert len(commands) == 3
    result = run(Path(TRAIN).resolve(), '--help', cwd=tmp_path)
    known = set(re.findall(r'(?<![\w-])--?[a-z][\w-]*', result.stdout))
    for command in commands:
        options = re.findall(r'(?<=\s)--?[a-z][\w-]*', command)
        assert len(options) > 5 and set(options) <= known, set(options) - known


@pytest.mark.slow
@needs_script
@pytest.mark.parametrize('way', ['runner', 'device modules'])
def test_train_script(way, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (('train', 16), ('val', 8)):
        for name, low in (('dark', 0), ('light', 100)):
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(low, low + 150, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / 'data' / split / name / f'{i}.png')
    launcher = () if way == 'device modules' else ('-m', 'mmvmamba.timm')
    modules = ('--device-modules', 'mmvmamba.timm') if way == 'device modules' else ()
    result = run(
        *(Path(TRAIN).resolve(), 'data', '--model', 'vmamba_tiny', '--model-kwargs', *THIN),
        *('--num-classes', 2, '--img-size', 32, '--batch-size', 8, '--epochs', 5),
        *('--warmup-epochs', 0, '--opt', 'adamw', '--lr', 5e-3, '--layer-decay', 0.9),
        *('--device', 'cpu', '--workers', 0, '--output', 'out', '--experiment', 'one', *modules),
        cwd=tmp_path,
        launcher=launcher,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    rows = (tmp_path / 'out/one/summary.csv').read_text().split()
    assert len(rows) == 6 and 'eval_top1' in rows[0]
    last = dict(zip(rows[0].split(','), rows[-1].split(','), strict=True))
    # Bright and dark images: half of them are right by chance.
    assert float(last['eval_top1']) > 75.0
    # What timm's script writes is a file of this package too.
    net = mmvmamba.create_model(
        'vmamba_tiny',
        pretrained=tmp_path / 'out/one/last.pth.tar',
        num_classes=2,
        dims=(8, 16, 24, 32),
        depths=(1, 1, 1, 1),
    )
    state = torch.load(tmp_path / 'out/one/last.pth.tar', weights_only=False)['state_dict']
    assert torch.equal(net.classifier.head.weight, state['classifier.head.weight'])
