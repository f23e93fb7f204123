"""Convert weights between the authors' files and this package's models, bit for bit."""

import argparse
import os

from mmvmamba.checkpoint.convert import KINDS, TARGETS, convert, kind_of, to_bytes
from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.engine import errors
from mmvmamba.engine.atomic_io import AtomicBackend
from mmvmamba.engine.errors import UserError
from mmvmamba.models.loading import read_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='file or URL, in any released naming scheme')
    parser.add_argument('dst', help='file to write')
    parser.add_argument(
        '--to',
        choices=TARGETS,
        default='mmvmamba',
        help="program that reads the new file: this package's models or the authors' code "
        '(default: mmvmamba)',
    )
    parser.add_argument(
        '--for',
        dest='kind',
        choices=KINDS,
        help='kind of model that the new file is for (default: that of the old file)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if os.path.realpath(args.src) == os.path.realpath(args.dst):
        raise UserError(f'dst must be another file than src, but both are {args.src!r}')
    content = read_checkpoint(args.src)
    tensors = state_dict_of(content, args.src)
    kind = args.kind or kind_of(tensors)
    meta = content.get('meta') if 'state_dict' in content else None
    new = convert(tensors, args.to, kind, meta)
    AtomicBackend().put(to_bytes(new), args.dst)
    count = len(new.get('state_dict', new.get('model')))
    print(f'{args.dst}: {count} of {len(tensors)} tensors, a {kind} for {args.to}')


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
