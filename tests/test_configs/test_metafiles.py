"""Every config is in its folder's metafile, and the other way round."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = (
    'cascade_rcnn',
    'comparison',
    'demo',
    'dino',
    'fsdp',
    'mask2former',
    'mask_rcnn',
    'retinanet',
    'rotated',
    'segformer',
    'upernet',
    'vmamba',
    'vmamba/ablation',
)
# Counted in a default run; the others take longer.
COUNTED_ALWAYS = (
    'vmamba-t_8xb128_in1k',
    'segformer_vmamba-t_8xb2-160k_ade20k-512x512',
    'mask-rcnn_vmamba-demo_fpn_demo',
    'vmamba-demo_upernet_demo-160x160',
    'vmamba-demo_demo-64x64',
)


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
        if folder == 'vmamba/ablation':  # one command with NAME for all of them
            model = dict(model, Config=f'configs/{folder}/NAME.py')
        single = folder in ('demo', 'rotated')
        train = 'tools/train.py {}\n' if single else 'tools/dist_train.sh {} 8\n'
        assert train.format(model['Config']) in text
        # Sharded models are tested without shards.
        assert f'tools/test.py {model["Config"]}' in text or folder == 'fsdp'
        assert 'Weights' not in model or f'({model["Weights"]})' in text


def models():
    for folder in FOLDERS:
        for model in read(f'configs/{folder}/metafile.yml')['Models']:
            if 'FLOPs (G)' in model['Metadata']:
                marks = () if model['Name'] in COUNTED_ALWAYS else pytest.mark.slow
                yield pytest.param(folder, model, marks=marks, id=model['Name'])


@pytest.mark.parametrize(('folder', 'model'), list(models()))
def test_parameters_and_flops_are_what_the_tool_counts(folder, model):
    pytest.importorskip('mmengine')
    from mmengine.config import Config

    import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)
    from mmvmamba.analysis.model_flops import count_config

    result = count_config(Config.fromfile(ROOT / model['Config']), shape_of(model))
    counted = {'Parameters (M)': result.params / 1e6, 'FLOPs (G)': result.published / 1e9}
    text = (ROOT / 'configs' / folder / 'README.md').read_text()
    (row,) = (line for line in text.splitlines() if f'({model["Name"]}.py)' in line)
    cells = [cell.strip() for cell in row.split('|')]
    for (name, value), cell in zip(counted.items(), numbers_of(cells, text), strict=True):
        for given in (str(model['Metadata'][name]), cell):
            assert f'{value:.{len(given.partition(".")[2])}f}' == given, name


def shape_of(model):
    """The size of the count, where it is not the tool's default."""
    if 'Input Size' in model['Metadata']:
        return [int(side) for side in model['Metadata']['Input Size'].split('x')]
    return (640, 2560) if '640x640' in model['Name'] else None


def numbers_of(cells, text):
    """The cells of a row below the headings of parameters and FLOPs."""
    headings = next(line for line in text.splitlines() if 'params (M)' in line)
    headings = [heading.strip() for heading in headings.split('|')]
    return [cells[headings.index(name)] for name in ('params (M)', 'GFLOPs')]


def test_results_of_the_demo_are_those_that_were_measured():
    measured = (ROOT / 'docs/benchmarks.md').read_text()
    readme = (ROOT / 'configs/demo/README.md').read_text()
    results = [r for m in read('configs/demo/metafile.yml')['Models'] for r in m.get('Results', [])]
    assert results
    for result in results:
        for name, value in result['Metrics'].items():
            assert f'{name} {value:.3f}' in measured
            assert f'{name} {value:.3f}' in readme


def test_every_folder_has_a_metafile():
    found = {path.parent.relative_to(ROOT / 'configs') for path in ROOT.glob('configs/**/*.py')}
    assert {path.as_posix() for path in found if '_base_' not in path.parts} == set(FOLDERS)


def test_model_index_imports_the_metafiles():
    imported = read('model-index.yml')['Import']
    assert all((ROOT / path).is_file() for path in imported)
    assert {f'configs/{folder}/metafile.yml' for folder in FOLDERS} <= set(imported)
