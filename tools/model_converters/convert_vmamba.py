"""Convert weights between the authors' files, this package's models and the Hugging Face Hub."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from mmvmamba.checkpoint.convert import KINDS, TARGETS, convert, kind_of, to_bytes
from mmvmamba.checkpoint.keys import CLASSIFIER_HEAD, FIRST_CONV, split_state_dict
from mmvmamba.checkpoint.matching import load_tensors
from mmvmamba.checkpoint.reader import class_names_of, state_dict_of
from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.checkpoint.released import IMAGENET_CLASSES
from mmvmamba.engine import errors
from mmvmamba.engine.atomic_io import AtomicBackend
from mmvmamba.engine.errors import UserError
from mmvmamba.hub import REPORTED, arch_of
from mmvmamba.models.loading import read_checkpoint
from mmvmamba.nn import ARCHS, VMambaNet
from mmvmamba.predict import imagenet_names


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='file or URL, in any released naming scheme')
    parser.add_argument('dst', help='file to write; a new folder with --to hf')
    parser.add_argument(
        '--to',
        choices=(*TARGETS, 'hf'),
        default='mmvmamba',
        help="program that reads the result: this package's models in OpenMMLab, the authors' "
        'code, or a folder for the Hugging Face Hub, from_pretrained, timm and transformers '
        '(default: mmvmamba)',
    )
    parser.add_argument(
        '--for',
        dest='kind',
        choices=KINDS,
        help='kind of model to write (default: as in src); with --to hf, backbone or classifier',
    )
    parser.add_argument(
        '--arch',
        choices=list(ARCHS),
        help='with --to hf: architecture (default: inferred from the shapes in the file)',
    )
    parser.add_argument(
        '--released',
        action='store_true',
        help='with --to hf: declare the file an unchanged ImageNet classifier of the authors; '
        "the folder then includes the paper's accuracy, the authors' license and the class names",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if os.path.realpath(args.src) == os.path.realpath(args.dst):
        raise UserError(f'dst must differ from src, but both are {args.src!r}')
    if args.arch and args.to != 'hf':
        raise UserError(f'--arch requires --to hf, but got --to {args.to}')
    if args.released and args.to != 'hf':
        raise UserError(f'--released requires --to hf, but got --to {args.to}')
    if args.to == 'hf' and os.path.exists(args.dst):
        if not os.path.isdir(args.dst) or os.listdir(args.dst):
            raise UserError(f'dst must be a new or an empty folder, but {args.dst!r} is not')
    content = read_checkpoint(args.src)
    tensors = state_dict_of(content, args.src)
    kind = args.kind or kind_of(tensors)
    if args.to == 'hf':
        print(f'{args.dst}: {write_hf(content, tensors, kind, args)}')
        return
    meta = content.get('meta') if 'state_dict' in content else None
    new = convert(tensors, args.to, kind, meta)
    AtomicBackend().put(to_bytes(new), args.dst)
    count = len(new.get('state_dict', new.get('model')))
    print(f'{args.dst}: {count} of {len(tensors)} tensors, a {kind} for {args.to}')


def write_hf(content: Any, tensors: Any, kind: str, args: argparse.Namespace) -> str:
    """Write a folder with config, weights and model card, and describe it."""
    if kind not in ('backbone', 'classifier'):
        raise UserError(f'--for must be backbone or classifier with --to hf, but got a {kind}')
    convert(tensors, 'mmvmamba', kind)  # an error if the file has no such model
    inside, _ = split_state_dict(tensors)
    settings = dict(arch=ARCHS[args.arch] if args.arch else arch_of(tensors))
    if FIRST_CONV in inside:
        settings['in_channels'] = inside[FIRST_CONV].shape[1]
    if kind == 'classifier':
        settings['num_classes'] = len(inside[f'{CLASSIFIER_HEAD}weight'])
    else:
        stages = range(len(settings['arch'].dims))
        normed = [i for i in stages if f'outnorm{i}.weight' in inside]
        settings['out_indices'] = normed or stages
    net = VMambaNet(**settings)
    matching = load_tensors(net, tensors, args.src)
    released = released_arch(net, inside) if args.released else None
    if kind == 'classifier':
        names = class_names_of(content)
        if released and names is None:
            with contextlib.suppress(ImportError):  # without torchvision the card has no names
                names = imagenet_names()
        net.class_names = names if names and len(names) == net.num_classes else None
    card = dict(released=released, notes=notes(args.src, matching.missing, released))
    net.save_pretrained(args.dst, model_card_kwargs=card)
    return f'{matching.total} tensors, a {kind} for the Hugging Face Hub'


def released_arch(net: VMambaNet, tensors: Any) -> str:
    """Return the architecture whose released classifier has the settings and sizes of a file."""
    head = tensors.get(f'{CLASSIFIER_HEAD}weight', ())
    found = [arch for arch in REPORTED if ARCHS[arch] == net.settings]
    if not found or net.in_channels != 3 or len(head) != IMAGENET_CLASSES:
        raise UserError(
            '--released requires a file with the settings of a released ImageNet classifier, '
            f'{IMAGENET_CLASSES} classes and 3 image channels'
        )
    return found[0]


def notes(src: str, missing: list[str], released: str | None) -> str:
    """Return what the model card says about the origin of the weights."""
    text = '' if released else f'Converted from `{Path(redacted(src)).name}`.'
    if missing:
        text += ' The file has no output norms; they have weights of 1 and biases of 0.'
    return text.strip()


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
