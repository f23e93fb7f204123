"""Settings of datasets as their classes complete them."""

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.registry import TRANSFORMS

from .configs import dataset_class, registered_class

#: Packages whose transforms keep the number of channels, except those in ``_CHANGING``.
_STOCK = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmvmamba')
_CHANGING = ('Albu', 'Albumentations', 'ConcatCDInput', 'RandomGrayscale', 'RGB2Gray')
_LOCAL = (None, 'local', 'disk', 'LocalBackend')


class Loader(NamedTuple):
    """How a pipeline loads images or label maps.

    Attributes:
        name (str): The transform.
        flag (str): Its ``color_type``.
        backend (str): Its ``imdecode_backend``.
        is_stock (bool): False for a transform that may decode in a way of its own.
        channels (int, optional): Number of channels that it must return; None if unknown.
    """

    name: str
    flag: str
    backend: str
    is_stock: bool = True
    channels: int | None = None

    @property
    def rotates(self) -> bool:
        """True if images are turned as their EXIF tag says."""
        return self.flag in ('color', 'grayscale') and self.backend != 'tifffile'

    @property
    def keeps_channels(self) -> bool:
        """True if an image has the channels of its file."""
        return self.flag == 'unchanged' or self.backend == 'tifffile'


def setting(leaf: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return a setting of a dataset, or the default value that its class has for it."""
    if name in leaf:
        return leaf[name]
    for cls in getattr(dataset_class(leaf), '__mro__', ())[:-1]:
        if '__init__' in vars(cls):
            parameter = inspect.signature(cls.__init__).parameters.get(name)
            if parameter is not None and parameter.default is not parameter.empty:
                return parameter.default
    return default


def data_folder(leaf: Mapping[str, Any], key: str) -> str | None:
    """Return a folder of ``data_prefix``, joined with ``data_root`` as MMEngine joins it."""
    prefix = setting(leaf, 'data_prefix')
    if isinstance(prefix, str):
        prefix = {'img_path': prefix}
    path = prefix.get(key) if isinstance(prefix, Mapping) else None
    return join_root(leaf, path)


def join_root(leaf: Mapping[str, Any], path: Any) -> str | None:
    """Return a path below ``data_root``, or None if it is not a path."""
    if not isinstance(path, str):
        return None
    root = leaf.get('data_root')
    joined = os.path.join(root, path) if isinstance(root, str) and '://' not in path else path
    return os.path.expanduser(joined)


def class_names(leaf: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the classes, from the config or the class of the dataset."""
    metainfo = leaf.get('metainfo')
    classes = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    if classes is None:
        classes = leaf.get('classes')  # of mmpretrain
    if classes is None:
        classes = getattr(dataset_class(leaf), 'METAINFO', {}).get('classes')
    if isinstance(classes, str):  # a file with a name in each line
        try:
            with open(os.path.expanduser(classes), encoding='utf-8') as file:
                return [line.rstrip('\n\r') for line in file]
        except (OSError, ValueError):
            return None
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else None


def is_remote(leaf: Mapping[str, Any]) -> bool:
    """Return True if files of a dataset are not in the local file system."""
    prefix = leaf.get('data_prefix')
    paths = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
    paths += [leaf.get('data_root'), leaf.get('ann_file')]
    if any(isinstance(path, str) and '://' in path for path in paths):
        return True
    for part in (leaf, *_steps(leaf)):
        for key in ('backend_args', 'file_client_args'):
            arguments = part.get(key)
            if isinstance(arguments, Mapping) and arguments.get('backend') not in _LOCAL:
                return True
    return False


def image_loader(leaf: Mapping[str, Any], channels: int | None = None) -> Loader:
    """Return how the pipeline loads images, by default as ``LoadImageFromFile`` does.

    Args:
        leaf (Mapping[str, Any]): The config of a dataset.
        channels (int, optional): Number of image channels of the model. It is that of the loaded
            images unless a transform may change it. Defaults to None, unknown.
    """
    loader = _loader(leaf, 'LoadImageFromFile', 'Image', 'color_type', 'color', 'cv2')
    return loader._replace(channels=channels) if _keeps_channels(leaf) else loader


def label_map_loader(leaf: Mapping[str, Any]) -> Loader:
    """Return how the pipeline loads label maps, by default as ``LoadAnnotations`` does."""
    return _loader(leaf, 'LoadAnnotations', 'Annotation', '', 'unchanged', 'pillow')


def _loader(
    leaf: Mapping[str, Any], stock: str, part: str, flag_key: str, flag: str, backend: str
) -> Loader:
    for step in _steps(leaf):
        kind = step.get('type')
        name = kind.split('.')[-1] if isinstance(kind, str) else getattr(kind, '__name__', '')
        if name.startswith('Load') and part in name:
            flag = step.get(flag_key) or flag
            backend = step.get('imdecode_backend') or backend
            return Loader(name, str(flag), str(backend), name == stock)
    return Loader(stock, flag, backend)


def _keeps_channels(leaf: Mapping[str, Any]) -> bool:
    """Return True if no transform of a pipeline can change the number of channels."""
    for step in _steps(leaf):
        cls = registered_class(TRANSFORMS, step)
        package = getattr(cls, '__module__', '').partition('.')[0]
        if package not in _STOCK or cls.__name__ in _CHANGING or 'transforms' in step:
            return False
    return True


def _steps(leaf: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    pipeline = leaf.get('pipeline')
    for step in pipeline if isinstance(pipeline, list | tuple) else ():
        if isinstance(step, Mapping):
            yield step
