"""Strip a training checkpoint to its weights and name the file by its hash."""

import argparse
import hashlib
import os

from mmvmamba.checkpoint.convert import strip_checkpoint, to_bytes
from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.engine import errors
from mmvmamba.engine.atomic_io import AtomicBackend
from mmvmamba.models.loading import read_checkpoint

#: Hexadecimal digits of the hash in the name, which torch.hub checks after a download.
_DIGITS = 8


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='training checkpoint')
    parser.add_argument('dst', help='name of the new file; NAME.pth becomes NAME-<hash>.pth')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    content = read_checkpoint(args.src)
    data = to_bytes(strip_checkpoint(content, state_dict_of(content, args.src)))
    path = f'{os.path.splitext(args.dst)[0]}-{hashlib.sha256(data).hexdigest()[:_DIGITS]}.pth'
    AtomicBackend().put(data, path)
    print(f'{path}: {len(data)} bytes')


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
