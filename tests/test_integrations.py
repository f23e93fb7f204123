"""The blocks of docs/integrations.md, with a small detector in place of the demo's."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmdet')

import mmvmamba.registry  # noqa: E402, F401  (before mmcv's ops)

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'integrations.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```', TEXT, re.MULTILINE | re.DOTALL)
CONFIG = 'configs/demo/mask-rcnn_vmamba-demo_fpn_demo.py'
CHECKPOINT = 'work_dirs/mask-rcnn_vmamba-demo_fpn_demo/epoch_16.pth'
SIDE = 160
#: Width, height and color of the objects of the first two classes.
OBJECTS = [((48, 40), (230, 60, 60)), ((36, 56), (60, 210, 90))]


def block(word):
    (text,) = (text for text in BLOCKS if word in text)
    return text


def draw(side, count, rng):
    """Return a picture (side, side, 3) of noise with one object in ``count`` cells of 160 pixels.

    The boxes (count, 4) and the labels (count,) come with it.
    """
    picture = rng.integers(0, 60, (side, side, 3), dtype=np.uint8)
    cells = rng.permutation((side // SIDE) ** 2)[:count]
    boxes, labels = [], rng.integers(0, len(OBJECTS), count)
    for cell, label in zip(cells, labels, strict=True):
        (width, height), color = OBJECTS[label]
        y, x = np.array(divmod(cell, side // SIDE)) * SIDE + rng.integers(0, 100, 2)
        picture[y : y + height, x : x + width] = color
        boxes.append((x, y, x + width, y + height))
    return picture, np.array(boxes, dtype=np.float32), labels


def training_batch(rng):
    """Return a batch of two pictures with an object each, as a data loader does."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    inputs, samples = [], []
    for _ in range(2):
        picture, boxes, labels = draw(SIDE, 1, rng)
        x1, y1, x2, y2 = boxes[0].astype(int)
        mask = np.zeros((1, SIDE, SIDE), dtype=np.uint8)
        mask[0, y1:y2, x1:x2] = 1
        names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        sample = DetDataSample(metainfo=dict.fromkeys(names, (SIDE, SIDE)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes),
            labels=torch.tensor(labels),
            masks=BitmapMasks(mask, SIDE, SIDE),
        )
        samples.append(sample)
        inputs.append(torch.tensor(picture[:, :, ::-1].copy()).permute(2, 0, 1))  # BGR, CHW
    return dict(inputs=inputs, data_samples=samples)


def make_detector(folder, steps):
    """Write the config and a checkpoint of a thin detector that was trained for some steps."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    cfg = Config.fromfile(ROOT / CONFIG)
    cfg.model.backbone.update(dims=(16, 24, 32, 48), depths=(1, 1, 1, 1))
    cfg.model.neck.in_channels = [16, 24, 32, 48]
    if not steps:
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=3)
    path = folder / CONFIG
    path.parent.mkdir(parents=True)
    cfg.dump(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    rng = np.random.default_rng(0)
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        losses = model(**model.data_preprocessor(training_batch(rng), True), mode='loss')
        loss, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = folder / CHECKPOINT
    path.parent.mkdir(parents=True)
    meta = dict(dataset_meta=dict(cfg.metainfo))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """A folder with a photograph and a detector of three random boxes."""
    folder = tmp_path_factory.mktemp('untrained')
    make_detector(folder, steps=0)
    photograph = folder / 'data' / 'demo' / 'images' / 'val' / '000001.jpg'
    photograph.parent.mkdir(parents=True)
    picture, *_ = draw(320, 3, np.random.default_rng(1))
    Image.fromarray(picture).save(photograph)
    Image.fromarray(picture).save(folder / 'large.png')
    return folder


def run(text, folder, monkeypatch, threshold='0.5'):
    """Run a block in a folder and return its variables."""
    monkeypatch.chdir(folder)
    assert '0.5' in text
    names = {}
    exec(text.replace('0.5', threshold), names)
    return names


def boxes_of(result):
    """Return the predictions of SAHI (N, 6): box, label and score."""
    rows = [
        (*p.bbox.to_xyxy(), p.category.id, p.score.value) for p in result.object_prediction_list
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, 6)


def count_found(predictions, boxes, labels):
    """Return the number of objects with a prediction of their class and an IoU of 0.5."""
    from torchvision.ops import box_iou

    found = set()
    for row in predictions[predictions[:, 5].argsort()[::-1]]:
        ious = box_iou(torch.tensor(row[None, :4]), torch.tensor(boxes))[0].numpy()
        ious[(labels != row[4]) | np.isin(np.arange(len(boxes)), list(found))] = 0
        if ious.max(initial=0) >= 0.5:
            found.add(int(ious.argmax()))
    return len(found)


def test_blocks_are_short():
    assert len(BLOCKS) == 4 and all(len(text.splitlines()) <= 20 for text in BLOCKS)


def test_large_picture(untrained, tmp_path, monkeypatch):
    tiles = tmp_path / 'data' / 'demo' / 'images' / 'val'
    tiles.mkdir(parents=True)
    with Image.open(untrained / 'large.png') as image:
        tile = image.crop((0, 0, SIDE, SIDE))
    tile.save(tiles / '000001.png')
    for i in range(144):
        (tiles / f'{i + 1:06d}.jpg').symlink_to('000001.png')
    monkeypatch.chdir(tmp_path)
    exec(block('paste'), {})
    with Image.open('large.png') as picture:
        assert picture.size == (2000, 2000) and picture.getpixel((39, 39)) == (128, 128, 128)
        for x, y in ((40, 40), (40 + 11 * SIDE, 40), (40 + 5 * SIDE, 40 + 11 * SIDE)):
            assert picture.crop((x, y, x + SIDE, y + SIDE)).tobytes() == tile.tobytes()


def test_sahi(untrained, monkeypatch):
    pytest.importorskip('sahi')
    names = run(block('get_sliced_prediction'), untrained, monkeypatch, threshold='0.0')
    whole, sliced = boxes_of(names['whole']), boxes_of(names['sliced'])
    assert len(whole) == 3 < len(sliced)
    assert whole[:, :4].max() <= 320 and 160 < sliced[:, :4].max() <= 320
    assert set(sliced[:, 4]) <= set(range(6))
    assert (untrained / 'work_dirs' / 'sahi' / 'prediction_visual.png').is_file()


def test_supervision(untrained, monkeypatch):
    pytest.importorskip('supervision')
    names = run(block('supervision'), untrained, monkeypatch, threshold='0.0')
    found = names['found']
    assert len(found) == 3 and found.mask.shape == (3, 320, 320) and found.xyxy.max() <= 320
    assert set(names['classes']) <= {'cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket'}
    annotated = np.asarray(Image.open(untrained / 'annotated.png'))
    before = np.asarray(Image.open(untrained / 'data/demo/images/val/000001.jpg'))
    assert annotated.shape == before.shape and (annotated != before).any()


@pytest.mark.parametrize(('threshold', 'count'), [(None, 0), (0.0, 3), (0.99, 0)])
def test_cvat(untrained, monkeypatch, threshold, count):
    """Call the function as the SDK does for each image of a task."""
    cvataa = pytest.importorskip('cvat_sdk.auto_annotation')

    class Context(cvataa.DetectionFunctionContext):
        frame_name, conf_threshold, conv_mask_to_poly = '000001.jpg', threshold, False

    names = run(block('cvat_sdk'), untrained, monkeypatch)
    labels = {label.id: label.name for label in names['spec'].labels}
    assert labels == dict(enumerate(['cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket']))
    with Image.open('data/demo/images/val/000001.jpg') as image:
        shapes = names['detect'](Context(), image)
    assert len(shapes) == count
    for shape in shapes:
        assert (shape.type.value, shape.frame) == ('rectangle', 0) and shape.label_id in labels
        x1, y1, x2, y2 = shape.points
        assert 0 <= x1 < x2 <= 320 and 0 <= y1 < y2 <= 320


@pytest.mark.slow
def test_slices_find_what_the_whole_picture_hides(tmp_path, monkeypatch):
    """60 objects in a picture of 2000 x 2000, with a detector that is trained on such objects."""
    pytest.importorskip('sahi')
    make_detector(tmp_path, steps=200)
    picture, boxes, labels = draw(2000, 60, np.random.default_rng(2))
    Image.fromarray(picture).save(tmp_path / 'large.png')
    names = run(block('get_sliced_prediction'), tmp_path, monkeypatch)
    assert count_found(boxes_of(names['whole']), boxes, labels) <= 3
    assert count_found(boxes_of(names['sliced']), boxes, labels) >= 54
