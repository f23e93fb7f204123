"""The key ``compile`` of MMEngine's configs."""

from pathlib import Path

import pytest
import torch

TRAIN = Path(__file__).parents[2] / 'tools' / 'train.py'


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
def test_a_compiled_training_gives_the_weights_of_an_eager_one(task, request, run_script, tmp_path):
    config = request.getfixturevalue(f'{task}_config')
    weights = {}
    for name, options in (('eager', ()), ('compiled', ('compile=True',))):
        options = ('--cfg-options', 'randomness.seed=0', *options)
        result = run_script(
            TRAIN, config, '--work-dir', name, '--no-validate', *options, cwd=tmp_path
        )
        assert ('has been "compiled"' in result.stdout + result.stderr) == (name == 'compiled')
        (path,) = (p for p in (tmp_path / name).glob('*.pth'))
        weights[name] = torch.load(path, weights_only=False)['state_dict']
    for key, want in weights['eager'].items():
        got = weights['compiled'][key]
        torch.testing.assert_close(
            got, want, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f'{key}: {text}'
        )
