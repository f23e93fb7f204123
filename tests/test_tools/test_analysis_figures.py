"""The tools that draw the paper's figures."""

import json

import pytest
import torch
from PIL import Image

from mmvmamba.nn import VMambaNet

THIN = 'tiny+dims=(8,16,24,32)+depths=(1,1,1,1)'
HEAD = {'date', 'device', 'machine', 'versions', 'tool'}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp('weights') / 'thin.pth'
    net = VMambaNet('tiny', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    torch.save(dict(model=net.state_dict()), path)
    return path


def read(path, tool):
    """The numbers beside a picture, which is there and not empty."""
    with Image.open(path) as image:
        assert image.format == 'PNG' and len(image.convert('RGB').getcolors(2**24)) > 20
    numbers = json.loads(path.with_suffix('.json').read_text())
    assert HEAD <= set(numbers) and numbers['tool'] == tool
    return numbers


def test_erf_before_and_after(run_here, data_root, weights, tmp_path, capfd):
    out = tmp_path / 'new' / 'erf.png'
    models = (THIN, f'{THIN}+ssm_init=zero', 'torch.nn:AvgPool2d+kernel_size=4')
    options = ('--images', data_root / 'images', '--size', '64x96', '--num-images', 3)
    checkpoints = ('--checkpoint', weights, 'none', 'none', '--trained', 'trained')
    code, log = run_here(
        'analysis_tools/erf.py', *models, *options, *checkpoints, '--out', out, '--device', 'cpu'
    )
    assert code == 0, log
    numbers = read(out, 'erf')
    assert numbers['size'] == '64x96' and numbers['images'] == 3
    rows = numbers['results']
    assert [(row['model'], row['state']) for row in rows] == [
        (THIN, 'random weights'),
        (THIN, 'trained'),
        (f'{THIN}+ssm_init=zero', 'random weights'),
        ('torch.nn:AvgPool2d+kernel_size=4', 'random weights'),
    ]
    assert rows[0]['share_within'] != rows[1]['share_within']
    # A pooling sees its 4 x 4 pixels, whose corners are 1.5 sqrt(2) from their middle.
    assert rows[3]['radius_of_share'] == {'0.5': 1.58, '0.9': 2.12, '0.99': 2.12}
    assert rows[3]['share_within']['4'] == 1


@pytest.mark.parametrize(
    'args, message',
    [
        (('tiny', '--checkpoint', 'a', 'b'), '--checkpoint must name one for each of the 1 models'),
        (('tiny', '--images', 'nowhere'), "'nowhere' does not exist"),
        (('tiny', '--num-images', '0'), '--num-images must be at least 1'),
        (('tiny', '--out', 'erf.jpg'), '--out must end in .png'),
        (('tiny', '--device', 'abacus'), "--device 'abacus' cannot be used"),
        (('nothing', '--num-images', '1', '--size', '64'), "model 'nothing' is no architecture"),
    ],
)
def test_erf_refuses(run_here, args, message):
    code, log = run_here('analysis_tools/erf.py', *args)
    assert code == 2 and message in log and 'Traceback' not in log
