"""Checks of annotations and loaded samples, and what replaces a bad sample."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mmvmamba.engine import BadDataHook, CheckSample
from mmvmamba.engine.data.sample_check import is_truncated
from mmvmamba.engine.data.sampling import BadSampleError, SampleIndex, reader_of
from mmvmamba.engine.errors import UserError, explain
from mmvmamba.engine.hooks.bad_data_hook import check_loaded_samples


def coco(tmp_path, **annotation):
    """A file with a good image, one with a changed annotation and one without any."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in range(3)]
    good = dict(id=1, image_id=0, category_id=1, bbox=[0, 0, 40, 30], segmentation=[])
    content = dict(
        images=images,
        annotations=[good, dict(good, id=2, image_id=1, **annotation)],
        categories=[dict(id=1, name='cat')],
    )
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_truncated_images(tmp_path, suffix):
    path = tmp_path / f'image.{suffix}'
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    assert not is_truncated(path)
    path.write_bytes(whole + bytes(10_000))  # cameras append things
    assert not is_truncated(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert is_truncated(path)
    (tmp_path / 'other.bin').write_bytes(b'anything')
    assert not is_truncated(tmp_path / 'other.bin')


def loaded(**extra):
    return dict(img=np.zeros((30, 40, 3), np.uint8), **extra)


class Masks:
    def __init__(self, height, width):
        self.height, self.width = height, width


@pytest.mark.parametrize(
    ('extra', 'words'),
    [
        (dict(height=40, width=30), 'image is 30 x 40 but its annotation says 40 x 30'),
        (dict(gt_seg_map=np.zeros((30, 20), np.uint8)), 'label map is 30 x 20, the image 30 x 40'),
        (dict(gt_seg_map=np.full((30, 40), 3, np.uint8)), r'values \[3\], there are 3 classes'),
        (dict(gt_masks=Masks(40, 30)), 'a mask is 40 x 30, the image 30 x 40'),
        (dict(gt_bboxes=torch.tensor([[41.0, 0, 50, 9]])), r'box \[41.0, .*\] is outside'),
        (dict(gt_bboxes=torch.tensor([[0, 0, float('nan'), 9]])), 'outside'),
        (dict(gt_bboxes_labels=np.array([0, 3])), r'class ids \[0, 3\] of 3 classes'),
        (dict(gt_bboxes_labels=np.array([-1])), r'class ids \[-1\]'),
    ],
)
def test_check_sample(extra, words):
    with pytest.raises(UserError, match=words):
        CheckSample(num_classes=3)(loaded(**extra))


def test_check_sample_lets_good_ones_through():
    labels = np.full((30, 40), 255, np.uint8)
    labels[:5] = 2
    results = loaded(
        height=30,
        width=40,
        gt_seg_map=labels,
        gt_masks=Masks(30, 40),
        gt_bboxes=torch.tensor([[-0.4, 0, 41, 9]]),
        gt_bboxes_labels=np.array([0, 2]),
    )
    assert CheckSample(num_classes=3)(results) is results
    empty = loaded(gt_bboxes=torch.zeros(0, 4), gt_bboxes_labels=np.zeros(0, int))
    assert CheckSample(num_classes=3)(empty) is empty


class LoadNothing:
    def __call__(self, results):
        return results


class Pipeline:
    def __init__(self):
        self.transforms = [LoadNothing(), LoadNothing(), print]


class Samples(Dataset):
    """Samples 3 and 4 are bad; one is its index and a random number of each generator."""

    def __init__(self, bad=(3, 4)):
        self.bad = bad
        self.pipeline = Pipeline()
        self.metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return 8

    def get_data_info(self, index):
        return dict(img_path=f'images/{index}.jpg')

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError('cannot be decoded')
        from mmengine.structures import BaseDataElement

        return dict(inputs=(index, np.random.rand()), data_samples=BaseDataElement())


def test_the_check_stands_behind_the_loaders_once():
    dataset = Samples()
    for _ in range(2):
        check_loaded_samples(dataset)
    steps = dataset.pipeline.transforms
    assert [type(step).__name__ for step in steps[:3]] == ['LoadNothing'] * 2 + ['CheckSample']
    assert len(steps) == 4
    assert steps[2].num_classes == 2


def read(dataset, skip, workers, indices):
    reader_of(dataset).skip = skip
    batches = [[SampleIndex(i, (5, 0, i)) for i in indices]]
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=lambda batch: batch
    )
    return next(iter(loader))


@pytest.mark.parametrize('workers', [0, 1])
def test_skip(workers):
    """The one in its place is always the same and has the name of the bad one with it."""
    good, replaced = read(Samples(), True, workers, [1, 3])
    assert 'bad_samples' not in good['data_samples'].metainfo
    (message,) = {text for text in replaced['data_samples'].metainfo['bad_samples'] if '/3' in text}
    assert message == "bad sample 'images/3.jpg': OSError: cannot be decoded"
    again = read(Samples(), True, 1 - workers, [3])[0]
    assert again['inputs'] == replaced['inputs']
    assert replaced['inputs'][0] not in (3, 4)


@pytest.mark.parametrize('workers', [0, 1])
def test_stop(workers):
    with pytest.raises(BadSampleError, match=r"bad sample 'images/4\.jpg'") as caught:
        read(Samples(), False, workers, [1, 4])
    words = "bad sample 'images/4.jpg': OSError: cannot be decoded"
    assert explain(caught.value) == words


def test_all_bad():
    with pytest.raises(BadSampleError, match='bad sample'):
        read(Samples(bad=range(8)), True, 0, [0])


class EagerIterator:
    """That of MMEngine's releases: it starts the workers when it is made."""

    def __init__(self, loader):
        self._iterator = iter(loader)


def runner_of(dataset=None, loop=None):
    """As far as the hook looks at it."""
    messages = []
    logger = SimpleNamespace(
        info=lambda text: messages.append(('INFO', text)),
        error=lambda text: messages.append(('ERROR', text)),
    )
    cfg = SimpleNamespace(train_dataloader=dict(dataset=dataset))
    loader = getattr(loop, 'dataloader', None)
    return SimpleNamespace(
        cfg=cfg, logger=logger, train_loop=loop, train_dataloader=loader
    ), messages


@pytest.mark.parametrize('workers', [0, 1])
def test_a_loop_that_has_begun_to_read(workers):
    """Without ResumeHook, which makes the loader anew."""
    loader = DataLoader(
        Samples(), batch_size=8, num_workers=workers, collate_fn=lambda batch: batch
    )
    loop = SimpleNamespace(dataloader=loader, dataloader_iterator=EagerIterator(loader))
    BadDataHook().before_train(runner_of(loop=loop)[0])
    batch = next(loop.dataloader_iterator._iterator)
    bad = [i for i, sample in enumerate(batch) if 'bad_samples' in sample['data_samples'].metainfo]
    assert bad == [3, 4]


def test_images_without_annotations_are_no_errors(tmp_path):
    """A line with their number and a few names."""
    path = coco(tmp_path)
    content = json.loads(open(path).read())
    content['images'] += [
        dict(content['images'][0], id=i, file_name=f'{i}.jpg') for i in range(3, 99)
    ]
    content['annotations'][0]['category_id'] = 7
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    runner, messages = runner_of(dict(type='CocoDataset', ann_file=path))
    BadDataHook()._audit(runner)
    names = '2.jpg, 3.jpg, 4.jpg, 5.jpg, 6.jpg, ...'
    assert sorted(messages) == [
        ('ERROR', f'{path}: class id 7, which the file does not define, in 1 image(s): 0.jpg'),
        ('INFO', f'{path}: no annotation in 97 image(s): {names}'),
    ]


@pytest.mark.parametrize('arguments', [dict(action='ignore'), dict(max_skipped=-1)])
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        BadDataHook(**arguments)
