"""Test a detector, a segmentor or a classifier and report its metrics."""

import argparse

from mmvmamba.engine import cli, errors
from mmvmamba.engine.checks.configs import check_data
from mmvmamba.engine.runner import build_runner, testing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--out',
        help='save the predictions to a .pkl file or, for segmentation, as label maps to a folder',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds each picture is shown (default: 2)'
    )
    parser.add_argument(
        '--interval', type=int, default=1, help='draw every n-th image (default: 1)'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: several scales and flip for segmentation, flip for '
        'detectors of boxes',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        testing.draw_predictions(cfg, args.show, args.show_dir, args.wait_time, args.interval)
    if args.tta:
        testing.use_tta(cfg)
    if args.out:
        testing.keep_predictions(cfg, args.out)
    check_data(cfg, 'test')
    cli.check_checkpoint(cfg, whole=True)
    build_runner(cfg).test()


if __name__ == '__main__':
    errors.run(main)
