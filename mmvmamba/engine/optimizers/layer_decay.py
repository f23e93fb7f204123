"""Layer-wise learning rate decay."""

import functools

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from mmvmamba.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor with a learning rate that decays from the head to the stem.

    Every layer of the backbone has ``layer_decay_rate`` times the learning rate of the next one.

    Args:
        optim_wrapper_cfg (dict): The config of the optimizer wrapper.
        paramwise_cfg (dict): ``layer_decay_rate``, in (0, 1], and the options of
            :class:`mmengine.optim.DefaultOptimWrapperConstructor`.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper of a model.

        Raises:
            TypeError: If neither the model nor its backbone has ``get_layer_depth``.
            ValueError: If ``layer_decay_rate`` is missing or not in (0, 1].
        """
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg.layer_decay_rate must be in (0, 1], but got {rate!r}')
        model = getattr(model, 'module', model)
        backbone = getattr(model, 'backbone', None)
        if hasattr(model, 'get_layer_depth'):
            get_layer_depth = model.get_layer_depth
        elif hasattr(backbone, 'get_layer_depth'):
            get_layer_depth = functools.partial(backbone.get_layer_depth, prefix='backbone.')
        else:
            raise TypeError(f'{type(backbone or model).__name__} has no method get_layer_depth')

        optim_wrapper = super().__call__(model)
        names = {parameter: name for name, parameter in model.named_parameters()}
        for group in optim_wrapper.optimizer.param_groups:
            layer, num_layers = get_layer_depth(names[group['params'][0]])
            group['lr'] *= rate ** (num_layers - 1 - layer)
        return optim_wrapper
