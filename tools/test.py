"""Test a detector, a segmentor or a classifier and report its metrics."""

import argparse
import os

from mmengine.config import Config, ConfigDict

from mmvmamba.engine import cli, console, errors
from mmvmamba.engine.checks.configs import check_data, leaf_datasets
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner import build_runner
from mmvmamba.engine.visualizer import use_adaptive_visualizer

PICKLE = ('.pkl', '.pickle')
FLIP = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--out',
        help='save the predictions to a .pkl file or, for segmentation, as label maps to a folder',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for images of the predictions')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds to show each image (default: 2)'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: several scales and flip for segmentation, flip for '
        'detectors of boxes',
    )
    return parser.parse_args()


def draw_predictions(cfg: Config, show: bool, folder: str | None, wait_time: float) -> None:
    """Turn on drawing of all predictions beside the ground truth, in a window or to a folder."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError('--show and --show-dir need default_hooks.visualization in the config')
    task = cli.task_of(cfg)
    hook['enable' if task == 'mmpretrain' else 'draw'] = True
    hook.update(interval=1, show=show, wait_time=wait_time)
    use_adaptive_visualizer(cfg)
    if folder is None:
        return
    if task == 'mmdet':
        # mmdet would join a relative path to its folder of results.
        hook.test_out_dir = os.path.abspath(folder)
    elif task == 'mmpretrain':
        hook.out_dir = folder
    else:
        cfg.visualizer.save_dir = folder


def shown_in(cfg: Config, folder: str | None) -> str | None:
    """Return where the images of ``--show-dir`` are."""
    if folder is None or cli.task_of(cfg) != 'mmseg':
        return folder
    return os.path.join(folder, 'vis_data', 'vis_image')  # as MMEngine's LocalVisBackend has it


def save_predictions(cfg: Config, out: str) -> None:
    """Turn on saving of predictions to a pickle file or, for segmentation, to label maps."""
    task = cli.task_of(cfg)
    if out.endswith(PICKLE):
        kind = 'mmdet.DumpDetResults' if task == 'mmdet' else 'mmengine.DumpResults'
        cfg.test_evaluator = [*metrics(cfg), ConfigDict(type=kind, out_file_path=out)]
    elif task == 'mmseg':
        for metric in metrics(cfg):
            metric.update(output_dir=out, keep_results=True)
    else:
        raise UserError(f'--out must end with one of {PICKLE}, but got {out!r}')


def use_tta(cfg: Config) -> None:
    """Turn on test-time augmentation as the config defines it, or mmdet's own by flipping."""
    datasets = list(leaf_datasets(cfg.test_dataloader.dataset))
    if cli.task_of(cfg) == 'mmdet':
        if any('segm' in (metric.get('metric') or ()) for metric in metrics(cfg)):
            raise UserError(
                '--tta merges boxes only, because mmdet has no test-time augmentation for instance '
                "masks, but test_evaluator.metric has 'segm'"
            )
        nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        cfg.setdefault('tta_model', dict(type='DetTTAModel', tta_cfg=nms))
        flip = dict(type='TestTimeAug', transforms=[FLIP, [dict(type='PackDetInputs')]])
        cfg.setdefault('tta_pipeline', [*datasets[0]['pipeline'][:-1], flip])
    missing = [name for name in ('tta_model', 'tta_pipeline') if name not in cfg]
    if missing:
        raise UserError(f'--tta needs {" and ".join(missing)} in the config')
    for dataset in datasets:
        dataset['pipeline'] = cfg.tta_pipeline
    if 'data_preprocessor' in cfg.model:
        # MMEngine passes the one beside the model, which may be an inherited one, to the wrapper.
        cfg.data_preprocessor = cfg.model.data_preprocessor
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def metrics(cfg: Config) -> list[ConfigDict]:
    evaluator = cfg.test_evaluator
    return list(evaluator) if isinstance(evaluator, list | tuple) else [evaluator]


def main() -> None:
    args = parse_args()
    with console.concise(args.launcher):
        cfg = cli.load_config(args)
        cfg.load_from, cfg.resume = args.checkpoint, False
        if args.show or args.show_dir:
            draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
        if args.tta:
            use_tta(cfg)
        if args.out:
            save_predictions(cfg, args.out)
        check_data(cfg, 'test')
        cli.check_checkpoint(cfg, whole=True)
        written = {'predictions': args.out, 'images': shown_in(cfg, args.show_dir)}
        outputs = {kind: path for kind, path in written.items() if path}
        cli.add_hook(cfg, type='mmvmamba.RunSummaryHook', outputs=outputs)
        build_runner(cfg, keep_config=True).test()


if __name__ == '__main__':
    errors.run(main)
