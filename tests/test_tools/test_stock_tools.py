"""tools/stock.py, and the commands of docs/tools.md with our configs."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from mmengine.config.utils import MODULE2PACKAGE
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stock(monkeypatch, capfd, tmp_path):
    """Runs tools/stock.py in this process; returns its exit status and what it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'Agg')

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['stock.py', *map(str, arguments)])
        monkeypatch.setattr(sys, 'path', list(sys.path))
        # As in a process that has not imported this package yet.
        monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
        try:
            runpy.run_path(str(ROOT / 'tools' / 'stock.py'), run_name='__main__')
        except SystemExit as stop:
            out, err = capfd.readouterr()
            return stop.code, out, err
        raise AssertionError('stock.py did not exit')

    return run


@pytest.mark.parametrize(
    ('package', 'config', 'head'),
    [
        ('mmdet', 'mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py', 'StandardRoIHead'),
        ('mmseg', 'upernet/vmamba-t_upernet_8xb2-160k_ade20k-512x512.py', 'UPerHead'),
        ('mmpretrain', 'vmamba/vmamba-t_8xb128_in1k.py', 'LinearClsHead'),
    ],
)
def test_whole_config(stock, package, config, head):
    """With the bases of the package."""
    code, out, err = stock(package, 'misc/print_config.py', ROOT / 'configs' / config)
    assert code == 0, err
    assert "type='mmvmamba.VMamba'" in out
    assert f"'{head}'" in out


def test_browse_detection_data(stock, detection_config, tmp_path):
    arguments = ('--output-dir', 'browsed', '--not-show')
    code, _, err = stock('mmdet', 'analysis_tools/browse_dataset.py', detection_config, *arguments)
    assert code == 0, err
    pictures = list((tmp_path / 'browsed').iterdir())
    assert len(pictures) == 4
    assert all(Image.open(path).size[1] == 64 for path in pictures)


def test_browse_segmentation_data(stock, segmentation_config, tmp_path):
    pytest.importorskip('mmseg', '1.4', reason='mmsegmentation 1.2.2 passes cv2 a permuted image')
    arguments = ('--output-dir', 'browsed', '--not-show')
    code, _, err = stock(
        'mmseg', 'analysis_tools/browse_dataset.py', segmentation_config, *arguments
    )
    assert code == 0, err
    assert len(list((tmp_path / 'browsed').iterdir())) == 4


def test_curves_of_a_log(stock, tmp_path):
    log = tmp_path / 'scalars.json'
    rows = [dict(loss=2 / i, lr=0.1, time=0.1, epoch=1, iter=i, step=i) for i in (1, 2, 3)]
    rows.append({'coco/segm_mAP': 0.5, 'step': 1})
    log.write_text('\n'.join(map(json.dumps, rows)))
    tool = 'analysis_tools/analyze_logs.py'
    curve = ('plot_curve', log, '--keys', 'loss', '--out', 'curve.png')
    assert stock('mmpretrain', tool, *curve)[0] == 0
    assert Image.open(tmp_path / 'curve.png').size[0] > 100
    code, out, err = stock('mmpretrain', tool, 'cal_train_time', log)
    assert code == 0 and '0.1' in out, err


def test_curve_of_the_learning_rate(stock, classification_config, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{classification_config}'\nparam_scheduler = dict(type='CosineAnnealingLR')\n"
    )
    options = ('--dataset-size', 64, '--ngpus', 8, '--save-path', 'lr.jpg', '--not-show')
    code, _, err = stock('mmpretrain', 'visualization/vis_scheduler.py', config, *options)
    assert code == 0, err
    assert Image.open(tmp_path / 'lr.jpg').size[0] > 100


def test_what_stock_does_not_find(stock):
    code, _, err = stock('mmdet', 'analysis_tools/browse_data.py')
    assert code == 2
    assert 'did you mean analysis_tools/browse_dataset.py' in err
    assert stock('mmfoo')[0] == 2


def test_the_list_of_tools(stock):
    code, out, _ = stock('mmseg')
    assert code == 0
    assert 'misc/print_config.py' in out.splitlines()


def commands():
    text = (ROOT / 'docs' / 'tools.md').read_text()
    blocks = re.findall(r'```bash\n(.*?)```', text, flags=re.DOTALL)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [shlex.split(line, comments=True) for line in lines if line and line[0] != '#']


def test_the_tools_of_the_page_take_their_options():
    tools = runpy.run_path(str(ROOT / 'tools' / 'stock.py'))['find_tools']
    number = 0
    for words in commands():
        if 'tools/stock.py' in words:
            package, tool = words[2:4]
            assert tool in tools(package), words
            text = tools(package)[tool].read_text()
            for option in (w for w in words if w.startswith('--')):
                assert f"'{option}'" in text, (words, option)
            number += 1
    assert number > 10
