"""Dataset with some bad samples."""

import numpy as np
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset


class LoadNothing:
    def __call__(self, results):
        return results


class Pipeline:
    def __init__(self):
        self.transforms = [LoadNothing(), LoadNothing(), print]


class Samples(Dataset):
    """Samples 3 and 4 are bad; a good one is its index and a random number."""

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
        return dict(inputs=(index, np.random.rand()), data_samples=BaseDataElement())
