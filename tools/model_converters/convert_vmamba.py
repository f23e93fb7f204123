"""Converts weights between the authors' files and this package's models, without a rounding."""

import argparse
import os

from mmvmamba.checkpoint.convert import KINDS, TARGETS, convert, kind_of, to_bytes, write_file
from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError
from mmvmamba.models.loading import read_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='file or URL, in any released spelling')
    parser.add_argument('dst', help='file to write')
    parser.add_argument(
        '--to',
        choices=TARGETS,
        default='mmvmamba',
        help="who reads the new file: this package's models or the authors' code "
        '(default: mmvmamba)',
    )
    parser.add_argument(
        '--for',
        dest='kind',
        choices=KINDS,
        help='the model that the new file is for (default: that of the old file)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if os.path.realpath(args.src) == os.path.realpath(args.dst):
        raise UserError(f'the new file must not be the old one, {args.src!r}')
    content = read_checkpoint(args.src)
    tensors = state_dict_of(content, args.src)
    kind = args.kind or kind_of(tensors)
    meta = content.get('meta') if 'state_dict' in content else None
    new = convert(tensors, args.to, kind, meta)
    write_file(to_bytes(new), args.dst)
    count = len(new.get('state_dict', new.get('model')))
    print(f'{args.dst}: {count} of {len(tensors)} tensors, a {kind} for {args.to}')


if __name__ == '__main__':
    errors.run(main)
