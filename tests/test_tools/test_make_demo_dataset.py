import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('skimage')

SCRIPT = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'make_demo_dataset.py'
THINGS = ['cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket']
NUM_STUFF = 5
NUM_IMAGES = {'train': 24, 'val': 12}
SIZE = 96


def run(out, *options):
    arguments = ['--num-train', '24', '--num-val', '12', '--size', str(SIZE), *options]
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(out), *arguments], capture_output=True, text=True
    )


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def load_json(path):
    return json.loads(path.read_text(encoding='utf-8'))


def assert_error(result, *words):
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr


def crops(root, split):
    """Yield the name of each annotation's crop, with the annotation."""
    annotations = load_json(root / 'annotations' / f'instances_{split}.json')['annotations']
    number = Counter()
    for annotation in annotations:
        image = annotation['image_id']
        number[image] += 1
        name = THINGS[annotation['category_id'] - 1]
        yield f'crops/{split}/{name}/{image:06d}_{number[image]}.jpg', annotation


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo') / 'a'
    result = run(out)
    assert result.returncode == 0, result.stderr
    return out


def test_layout(demo):
    names = set()
    for split, num_images in NUM_IMAGES.items():
        names.add(f'annotations/instances_{split}.json')
        for i in range(1, num_images + 1):
            names |= {f'images/{split}/{i:06d}.jpg', f'annotations/{split}/{i:06d}.png'}
        names |= {name for name, _ in crops(demo, split)}
    assert set(contents(demo)) == names
    assert [p.name for p in demo.parent.iterdir()] == [demo.name]


def test_same_bytes(demo, tmp_path):
    assert run(tmp_path / 'b').returncode == 0
    assert contents(tmp_path / 'b') == contents(demo)


def test_first_images_do_not_depend_on_the_number(demo, tmp_path):
    assert run(tmp_path / 'b', '--num-train', '3', '--num-val', '1').returncode == 0
    few, many = contents(tmp_path / 'b'), contents(demo)
    for name in few:
        if not name.endswith('.json'):
            assert few[name] == many[name]


def test_train_and_val_differ(demo):
    files = contents(demo)
    assert files['images/train/000001.jpg'] != files['images/val/000001.jpg']
    sources = {}
    for split in NUM_IMAGES:
        annotations = load_json(demo / 'annotations' / f'instances_{split}.json')['annotations']
        sources[split] = {a['source'] for a in annotations}
    common = {source.split(':')[0] for source in sources['train'] & sources['val']}
    assert not common & {'coin', 'motorcycle'}
    for split in NUM_IMAGES:
        assert any(source.startswith('coin:') for source in sources[split])


@pytest.mark.parametrize('split', NUM_IMAGES)
def test_masks_match_label_maps(demo, split):
    coco_api = pytest.importorskip('pycocotools.coco')
    coco = coco_api.COCO(str(demo / 'annotations' / f'instances_{split}.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == THINGS
    assert len(coco.imgs) == NUM_IMAGES[split]
    for image_id, info in coco.imgs.items():
        with Image.open(demo / 'images' / split / info['file_name']) as image:
            assert image.size == (info['width'], info['height']) == (SIZE, SIZE)
            assert image.mode == 'RGB'
        with Image.open(demo / 'annotations' / split / f'{image_id:06d}.png') as label_map:
            assert label_map.mode == 'P'
            labels = np.asarray(label_map)
        assert labels.min() >= 1
        assert labels.max() <= len(THINGS) + NUM_STUFF
        rebuilt = np.zeros_like(labels)
        assert coco.imgToAnns[image_id]
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation).astype(bool)
            assert not rebuilt[mask].any(), 'visible masks overlap'
            rebuilt[mask] = annotation['category_id']
            rows, cols = np.nonzero(mask)
            box = [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            assert annotation['bbox'] == box
            assert annotation['area'] == mask.sum() > 0
            assert annotation['iscrowd'] == 0
        np.testing.assert_array_equal(rebuilt, np.where(labels <= len(THINGS), labels, 0))


@pytest.mark.parametrize('split', NUM_IMAGES)
def test_crops_show_their_objects(demo, split):
    for name, annotation in crops(demo, split):
        x, y, width, height = annotation['bbox']
        margin = round(0.1 * max(width, height))
        left, top = max(0, x - margin), max(0, y - margin)
        with Image.open(demo / 'images' / split / f'{annotation["image_id"]:06d}.jpg') as image:
            right = min(image.width, x + width + margin)
            bottom = min(image.height, y + height + margin)
            whole = np.asarray(image.convert('RGB')).astype(int)
        with Image.open(demo / name) as crop:
            assert crop.size == (right - left, bottom - top)
            # Both are compressed, so they differ a little.
            shown = np.asarray(crop).astype(int)
        assert np.abs(shown - whole[top:bottom, left:right]).mean() < 4


def test_every_class_occurs(demo):
    for split in NUM_IMAGES:
        annotations = load_json(demo / 'annotations' / f'instances_{split}.json')['annotations']
        assert {a['category_id'] for a in annotations} == set(range(1, len(THINGS) + 1))
        assert [a['id'] for a in annotations] == list(range(1, len(annotations) + 1))


def test_coco_evaluation_of_the_truth_is_perfect(demo):
    coco_api = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval

    truth = coco_api.COCO(str(demo / 'annotations' / 'instances_val.json'))
    results = [
        {
            'image_id': a['image_id'],
            'category_id': a['category_id'],
            'score': 1.0,
            'segmentation': truth.annToRLE(a),
        }
        for a in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(results), 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'notes.txt').write_text('mine')
    assert_error(run(tmp_path / 'b'), 'b exists; delete it')
    assert contents(tmp_path) == {'b/notes.txt': b'mine'}


def test_what_an_interrupted_run_left_is_replaced(demo, tmp_path):
    (tmp_path / 'b.part' / 'images').mkdir(parents=True)
    (tmp_path / 'b.part' / 'images' / 'x.jpg').write_bytes(b'')
    assert run(tmp_path / 'b').returncode == 0
    assert contents(tmp_path / 'b') == contents(demo)
    assert [p.name for p in tmp_path.iterdir()] == ['b']


def test_no_machine_paths(demo):
    for name, content in contents(demo).items():
        if name.endswith('.json'):
            assert b'/' not in content.replace(b'\\/', b'/')
