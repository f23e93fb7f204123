"""Renaming and checking of the checkpoint that a run loads."""

from typing import Any

from mmengine.hooks import Hook
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvmamba.checkpoint.keys import BACKBONE
from mmvmamba.checkpoint.matching import with_image_channels
from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.engine.utils import load_from, resumes, unwrapped
from mmvmamba.models.loading import adapt_state_dict, check_model, check_values
from mmvmamba.nn import VMambaNet
from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class CheckpointMatchingHook(Hook):
    """Rename the tensors of a released file, and refuse a checkpoint that does not match the model.

    MMEngine would load the tensors that match and keep random weights in the rest. Training with a
    different number of image channels can start from a 3-channel file: the first convolution is
    adapted.

    Args:
        whole (bool): Whether every tensor of the model must be in the file, as for a test. A
            resumed run always needs every tensor. Defaults to False.
    """

    priority = 'VERY_HIGH'  # before EMAHook copies the weights

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole

    def after_load_checkpoint(self, runner: Any, checkpoint: Any) -> None:
        """Replace ``state_dict`` in place.

        Raises:
            ValueError: If the checkpoint does not match, contains NaN or Inf, or contains no state
                to resume from.
        """
        filename = redacted(str(load_from(runner) or runner.work_dir))
        tensors = state_dict_of(checkpoint, filename)
        if resumes(runner) and not {'meta', 'message_hub'} <= checkpoint.keys():
            raise ValueError(
                f'checkpoint {filename!r} contains weights but no training state; to start from '
                'these weights, use --cfg-options load_from=...'
            )
        model = unwrapped(runner.model)
        tensors = adapt_state_dict(model, tensors, filename)
        is_whole, backbone = self.whole or resumes(runner), getattr(model, 'backbone', None)
        if not is_whole and isinstance(backbone, VMambaNet):
            tensors, adapted = with_image_channels(tensors, backbone, BACKBONE)
            if adapted:
                runner.logger.info(f'{filename}: {adapted}')
        if any(isinstance(m, FullyShardedDataParallel) for m in runner.model.modules()):
            check_values(model, tensors, filename)
        else:
            matching = check_model(model, tensors, filename, is_whole)
            runner.logger.info(f'{filename}: {matching}')
            # torch would cast a tensor of another kind; it leaves those of another shape out.
            own = model.state_dict()
            for key in matching.mismatched:
                if tensors[key].shape == own[key].shape:
                    del tensors[key]
        checkpoint['state_dict'] = tensors
