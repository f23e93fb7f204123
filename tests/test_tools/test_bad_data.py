"""Training on partly bad data, with real processes."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from .fault_jobs import DETECTION, SEGMENTATION, losses, output
from .test_faults import start_ranks

# Files and what is wrong with each.
DETECTION_FAULTS = {
    '1.png': r"bad sample '.*/1\.png': '.*1\.png' is truncated",
    '2.png': r"bad sample '.*/2\.png': FileNotFoundError: ",
    '3.png': r"image has no annotations: '3\.png'\. ",
    '4.png': r"`bbox` is entirely outside the image: annotation \d+ of '4\.png'",
    '5.png': r"bad sample '.*/5\.png': ",
    '6.png': r"`category_id` is not the `id` of any category: annotation \d+ of '6\.png'",
    '7.png': r'bad sample .*7\.png.*the image is 48 x 64, but its annotation is for 64 x 64',
    '8.jpg': r"bad sample '.*/8\.jpg': '.*8\.jpg' is truncated",
}
SEGMENTATION_FAULTS = {
    '1.png': r'1\.png.*the label map is 32 x 32, but the image is 64 x 64',
    '2.png': r'2\.png.*the label map has the values \[76\], but there are 3 classes',
    '3.png': r"bad sample '.*/images/3\.png'.*FileNotFoundError: ",
    '4.png': r"bad sample '.*/4\.png'.*is truncated",
}


#: Checks before the first step would end these runs.
WARN = 'default_hooks.bad_data.check=warn'


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def detection(data_root, detection_config, tmp_path):
    """Config whose first image is good and all others are bad, each in its own way."""
    root = tmp_path / 'data'
    shutil.copytree(data_root, root)
    coco = json.loads((root / 'instances.json').read_text())
    annotations = [a for a in coco['annotations'] if a['image_id'] == 0]
    coco.update(images=[], annotations=[])
    for i, name in enumerate(['0.png', *DETECTION_FAULTS]):
        if i:
            Image.open(data_root / 'images' / '0.png').save(root / 'images' / name)
        coco['images'].append(dict(id=i, file_name=name, width=64, height=64))
        if i != 3:
            coco['annotations'] += [dict(a, id=10 * i + a['id'], image_id=i) for a in annotations]
    first = {i: a for a in reversed(coco['annotations']) for i in [a['image_id']]}
    truncate(root / 'images' / '1.png')
    (root / 'images' / '2.png').unlink()
    first[4]['bbox'] = [70.0, 70.0, 10.0, 10.0]
    first[5]['segmentation'] = dict(size=[32, 32], counts=[500, 24, 500])
    first[6]['category_id'] = 99
    Image.open(root / 'images' / '7.png').crop((0, 0, 64, 48)).save(root / 'images' / '7.png')
    truncate(root / 'images' / '8.jpg')
    (root / 'instances.json').write_text(json.dumps(coco))
    return write_config(tmp_path, detection_config, DETECTION, root, data_root)


@pytest.fixture
def segmentation(data_root, segmentation_config, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(data_root, root)
    Image.open(root / 'labels' / '1.png').resize((32, 32), 0).save(root / 'labels' / '1.png')
    labels = np.array(Image.open(root / 'labels' / '2.png'))
    labels[0, 0] = 77
    Image.fromarray(labels).save(root / 'labels' / '2.png')
    for number in range(4, 9):  # mostly good ones: 20 bad replacements in a row end a run
        for folder in ('images', 'labels'):
            shutil.copy(root / folder / '0.png', root / folder / f'{number}.png')
    truncate(root / 'images' / '4.png')
    text = write_config(tmp_path, segmentation_config, SEGMENTATION, root, data_root)
    (root / 'labels' / '3.png').unlink()
    return text


def write_config(folder, base, text, root, old_root):
    own = folder / 'base.py'
    own.write_text(base.read_text().replace(str(old_root), str(root)))
    path = folder / 'config.py'
    path.write_text(f"_base_ = './base.py'\n{text}")
    return path


def test_bad_detection_data_is_skipped(server, detection, tmp_path):
    work_dir = tmp_path / 'run'
    assert server.run(detection, work_dir, '--cfg-options', 'train_cfg.max_epochs=2', WARN) == 0
    log = output(work_dir)
    for name, words in DETECTION_FAULTS.items():
        assert re.search(words, log), (name, log)
    count = len(re.findall(r'iteration \d+: skipped ', log))
    assert f'skipped {count} bad samples in this run' in log
    assert 'nan' not in ''.join(str(entries) for entries in losses(work_dir).values())


@pytest.mark.parametrize(
    'more', [(), pytest.param(('default_hooks.resume=None',), marks=pytest.mark.slow)]
)
def test_bad_segmentation_data_is_skipped(server, segmentation, more, tmp_path):
    """Also without another hook that replaces the data loader."""
    work_dir = tmp_path / 'run'
    options = ('train_dataloader.num_workers=1', 'train_cfg.max_iters=6', WARN, *more)
    assert server.run(segmentation, work_dir, '--cfg-options', *options) == 0
    log = output(work_dir)
    for name, words in SEGMENTATION_FAULTS.items():
        assert re.search(words, log), (name, log)


def test_too_many_are_skipped(server, segmentation, tmp_path):
    options = ('--cfg-options', 'default_hooks.bad_data.max_skipped=2', WARN)
    assert server.run(segmentation, tmp_path / 'run', *options) == 2
    words = r'error: skipped \d+ bad samples, more than max_skipped=2; the last one is bad'
    assert re.search(words, output(tmp_path / 'run'))


def test_errors_in_the_data_end_a_run_before_its_first_step(server, detection, tmp_path):
    assert server.run(detection, tmp_path / 'run') == 2
    log = output(tmp_path / 'run')
    words = r'instances\.json: `segmentation` is RLE with a different size.*: annotation \d+ of '
    assert re.search(rf"ERROR - .*{words}'5\.png'", log)
    assert re.search(
        rf'error: .*{words}.*\(to train anyway, set default_hooks.bad_data.check=warn', log
    )
    assert 'Epoch(train)' not in log


def test_stop_with_several_ranks(server, segmentation, tmp_path):
    """One rank finds the bad sample, and the other does not wait forever."""
    options = ('--cfg-options', 'default_hooks.bad_data.action=stop', WARN)
    pids = start_ranks(server, segmentation, tmp_path / 'run', *options)
    statuses = [server.wait(pid, 60) for pid in pids]
    assert 2 in statuses
    assert not {0, None} & set(statuses)
    assert re.search(r"error: bad sample '.*/images/\d\.png'", output(tmp_path / 'run'))


def test_skip_with_several_ranks(server, segmentation, tmp_path):
    pids = start_ranks(server, segmentation, tmp_path / 'run', '--cfg-options', WARN)
    assert [server.wait(pid, 60) for pid in pids] == [0, 0], output(tmp_path / 'run')
    assert len(losses(tmp_path / 'run')) == 14
