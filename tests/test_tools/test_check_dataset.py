"""tools/dataset_converters/check_dataset.py as a script."""

import json
import shutil

TOOL = 'dataset_converters/check_dataset.py'


def test_good_data(detection_config, run_here):
    assert run_here(TOOL, detection_config) == (0, '')


def test_bad_data(data_root, detection_config, run_here, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(data_root, root)
    coco = json.loads((root / 'instances.json').read_text())
    del coco['annotations'][0]['bbox']
    (root / 'instances.json').write_text(json.dumps(coco))
    (root / 'images' / '0.png').unlink()
    config = tmp_path / 'config.py'
    config.write_text(detection_config.read_text().replace(str(data_root), str(root)))
    status, err = run_here(TOOL, config, '--stages', 'train')
    assert status == 2
    assert 'error: the data has 2 kind(s) of errors; see above' in err
    status, err = run_here('train.py', config)
    assert status == 2
    assert 'default_hooks.bad_data.check=warn' in err
    assert 'instances.json: ' in err


def test_classes_with_other_names(detection_config, run_here, tmp_path):
    """As training names them."""
    config = tmp_path / 'config.py'
    config.write_text(detection_config.read_text().replace("'box'", "'Box'"))
    for tool in (TOOL, 'train.py'):
        status, err = run_here(tool, config)
        assert status == 2
        assert "metainfo.classes has ['Box'], but the categories of annotation file" in err


def test_arguments(detection_config, run_here):
    status, err = run_here(TOOL, detection_config, '--sample', '-1')
    assert status == 2
    assert '--sample must not be negative, but got -1' in err
