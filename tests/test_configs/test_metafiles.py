"""Every config is in its folder's metafile, and the other way round."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ('mask_rcnn', 'upernet', 'vmamba')


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


@pytest.mark.parametrize('folder', FOLDERS)
def test_metafile_lists_the_configs(folder):
    models = read(f'configs/{folder}/metafile.yml')['Models']
    listed = [model['Config'] for model in models]
    found = [f'configs/{folder}/{path.name}' for path in (ROOT / 'configs' / folder).glob('*.py')]
    assert sorted(listed) == sorted(found)
    assert [model['Name'] for model in models] == [Path(config).stem for config in listed]


@pytest.mark.parametrize('folder', FOLDERS)
def test_readme_has_every_config_and_its_weights(folder):
    text = (ROOT / 'configs' / folder / 'README.md').read_text()
    for model in read(f'configs/{folder}/metafile.yml')['Models']:
        assert f'({model["Name"]}.py)' in text
        assert f'tools/train.py {model["Config"]}' in text
        assert f'tools/test.py {model["Config"]}' in text
        assert 'Weights' not in model or f'({model["Weights"]})' in text


def test_model_index_imports_the_metafiles():
    imported = read('model-index.yml')['Import']
    assert all((ROOT / path).is_file() for path in imported)
    assert {f'configs/{folder}/metafile.yml' for folder in FOLDERS} <= set(imported)
