"""Compare the logits of a classifier checkpoint with recorded values, or record them.

The image is computed from integers, so it is the same everywhere, and the network runs on the
CPU in float32. logits.json next to this script contains the recorded values of released files.
Requires only torch.

Example:
    python tools/model_converters/check_logits.py vmamba_tiny
    python tools/model_converters/check_logits.py vmamba_tiny FILE --record
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmvmamba
from mmvmamba.checkpoint.download import download, is_url
from mmvmamba.checkpoint.released import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    released_file,
    released_name,
)
from mmvmamba.nn.factory import MODEL_NAMES

SIZE = 224
#: One logit of so many is recorded, besides the largest ones.
STEP, TOP = 25, 5
#: Largest difference over the standard deviation of the logits. Kernels, and processors, differ in
#: the order of their float32 sums.
TOLERANCE = 1e-3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = mmvmamba.list_models()
    parser.add_argument(
        'model', choices=names, metavar='model', help='a name from mmvmamba.list_models()'
    )
    parser.add_argument(
        'file', nargs='?', help='weight file or URL (default: the released file, downloaded)'
    )
    parser.add_argument(
        '--record',
        action='store_true',
        help="write this file's values as the reference of the model's released file",
    )
    parser.add_argument(
        '--values',
        type=Path,
        default=Path(__file__).with_name('logits.json'),
        help='file of recorded values (default: logits.json next to this script)',
    )
    return parser.parse_args()


def image() -> Tensor:
    """Return a picture (1, 3, 224, 224) of stripes, a disk and a checkerboard, normalized."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing='ij')
    red = (x * x + 3 * y * y) // 512 % 256
    green = torch.where((x - 90) ** 2 + (y - 120) ** 2 < 4900, 220, (2 * x + y) // 3)
    blue = torch.where((x // 28 + y // 28) % 2 == 0, 40, 255 - y)
    pixels = torch.stack([red, green, blue]).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std).unsqueeze(0)


@torch.no_grad()
def run(model: str, file: str) -> Tensor:
    """Return the logits of the image."""
    logits = mmvmamba.create_model(model, file).eval()(image())[0]
    if not logits.isfinite().all():
        raise ValueError(f'checkpoint {file!r} produces logits that are not finite')
    return logits


def values_of(logits: Tensor, file: str) -> dict[str, Any]:
    """Return what is recorded: the file's hash, the largest logits, and some of the others."""
    top = logits.topk(min(TOP, len(logits))).indices.tolist()
    indices = [*top, *range(0, len(logits), STEP)]
    return {
        'sha256': hashlib.sha256(Path(file).read_bytes()).hexdigest(),
        'classes': len(logits),
        'logits': {str(i): round(float(logits[i]), 6) for i in indices},
    }


def difference(logits: Tensor, recorded: dict[str, Any]) -> float:
    """Return the largest difference of logits over their standard deviation."""
    if len(logits) != recorded['classes']:
        raise ValueError(f'got {len(logits)} logits, but {recorded["classes"]} are recorded')
    errors = [abs(float(logits[int(i)]) - v) for i, v in recorded['logits'].items()]
    return max(errors) / float(logits.std())


def main() -> None:
    args = parse_args()
    arch = MODEL_NAMES[args.model]
    file = args.file or released_file(arch)
    file = download(file) if is_url(file) else file
    logits = run(args.model, file)
    name = released_name(arch)
    new = values_of(logits, file)
    for i, value in list(new['logits'].items())[:TOP]:
        print(f'class {i}: {value:.4f}')
    values = json.loads(args.values.read_text()) if args.values.is_file() else {}
    if args.record:
        values[name] = new
        args.values.write_text(json.dumps(values, indent=1, sort_keys=True) + '\n')
        print(f'{args.values}: recorded the values of {file} as the reference for {name}')
    elif name not in values:
        sys.exit(f'{args.values} has no reference values for {name}; run with --record to add them')
    else:
        report(difference(logits, values[name]), new['sha256'] == values[name]['sha256'])


def report(error: float, is_same_file: bool) -> None:
    """Print the result, and exit with status 1 if the logits differ."""
    other = '' if is_same_file else "; the file's SHA-256 differs from that of the reference"
    text = f'largest difference: {error:.1e} standard deviations{other}'
    if not error < TOLERANCE:
        sys.exit(f'logits differ from the reference: {text}')
    print(f'logits match the reference: {text}')


if __name__ == '__main__':
    try:
        main()
    except (OSError, ValueError) as error:
        sys.stderr.write(f'check_logits.py: error: {error}\n')
        sys.exit(2)
