"""Time of VMamba-T over that of mmpretrain's Swin-T on a CPU: 224, 512 and 768 px, fp32, batch 1.

A fixed setting of ``backbone.py``: both models in one process and in turn, medians.
"""

import argparse
import sys
from pathlib import Path

import backbone


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--quick', action='store_true', help='fewer rounds')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='write the results there')
    args = parser.parse_args(argv)
    command = ['--models', 'vmamba-t', 'swin-t', '--sizes', '224', '512', '768']
    command += ['--batch-sizes', '1', '--modes', 'inference', '--precisions', 'fp32']
    command += ['--runs', 'eager', '--no-memory', '--seconds', '5' if args.quick else '20']
    command += ['--min-rounds', '3' if args.quick else '11']
    command += ['--out', str(args.out)] if args.out else []
    rows = [row for row in backbone.main(command) if row['model'] == 'vmamba-t']
    for row in rows:
        ratio = 'Swin-T did not run' if row['ratio'] is None else f'{row["ratio"]:.3f}'
        sys.stdout.write(f'VMamba-T / Swin-T at {row["size"]}: {ratio}\n')
    return int(any(row['ratio'] is None for row in rows))


if __name__ == '__main__':
    sys.exit(main())
