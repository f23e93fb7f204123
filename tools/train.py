"""Train a detector, a segmentor or a classifier."""

import argparse

from mmengine.config import Config

from mmvmamba.engine import cli, console, errors
from mmvmamba.engine.checks.configs import check_data
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner import build_runner
from mmvmamba.engine.runner.distributed import runs_on_cpu
from mmvmamba.engine.work_dir import locked


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='resume from this checkpoint, or from the latest in the work directory',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: fp16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from the batch size of the recipe to that of this run',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during training'
    )
    return parser.parse_args()


def apply_args(cfg: Config, args: argparse.Namespace) -> None:
    # MMEngine's wrapper for mixed precision, which a config may name, refuses to run on a CPU.
    named = (cfg.get('optim_wrapper') or {}).get('type') == 'AmpOptimWrapper'
    if args.amp or (named and runs_on_cpu()):
        cli.use_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        cfg.auto_scale_lr.enable = True
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.resume is not None:
        cli.resume_from(cfg, args.resume)


def main() -> None:
    args = parse_args()
    with console.concise(args.launcher):
        cfg = cli.load_config(args)
        with locked(cfg.work_dir, cfg.launcher):
            apply_args(cfg, args)
            check_data(cfg, 'train', *([] if args.no_validate else ['val']))
            cli.check_checkpoint(cfg, whole=False)
            cli.add_hook(cfg, type='mmvmamba.RunSummaryHook')
            build_runner(cfg).train()


if __name__ == '__main__':
    errors.run(main)
