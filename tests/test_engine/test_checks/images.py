"""Small images, label maps and configs of datasets, for the tests of the checks of files."""

import mmdet.datasets  # noqa: F401
import mmpretrain.datasets  # noqa: F401
import mmseg.datasets  # noqa: F401
import numpy as np
from PIL import Image

from mmvmamba.engine.checks.report import Report


def picture(path, size=(8, 6), mode='RGB', orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size)
    exif = image.getexif()
    if orientation:
        exif[274] = orientation
    image.save(path, exif=exif) if orientation else image.save(path)
    return path


def label_map(path, *labels, size=(8, 6), dtype=np.uint8):
    """A label map in which each label has at least a pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.resize(np.array(labels, dtype), (size[1], size[0]))
    Image.fromarray(array).save(path)
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def groups(check, *args, **kwargs):
    """Run a check, and return severity, kind, items and hint of its groups."""
    report = Report()
    for position, argument in enumerate(args):
        if argument is Report:
            args = (*args[:position], report, *args[position + 1 :])
    check(*args, **kwargs)
    found = list(report.groups())
    for group in found:
        assert not group.hint.endswith('.') and str(group)
    return found


def only(found, severity, words):
    """Return the only group, and check its severity and words."""
    assert [(g.severity, g.kind) for g in found] == [(severity, found[0].kind)], found
    assert words in str(found[0]), str(found[0])
    return found[0]
