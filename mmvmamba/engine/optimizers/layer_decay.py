"""Learning rates that fall from the head to the stem."""

from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmvmamba.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Multiplies the learning rate by ``layer_decay_rate`` for every block below the head.

    ``paramwise_cfg`` takes ``layer_decay_rate`` (in (0, 1]) besides the options of
    :class:`mmengine.optim.DefaultOptimWrapperConstructor`, which hold too. The model's backbone,
    or the model itself, has ``get_layer_depth``.

    Args:
        optim_wrapper_cfg (dict): The config of the optimizer wrapper.
        paramwise_cfg (dict): The options.

    Raises:
        ValueError: If ``layer_decay_rate`` is missing or not in (0, 1].
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg.layer_decay_rate must be in (0, 1], but got {rate!r}')
        self.layer_decay_rate = rate

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Adds the parameters of a module, each as a group with its learning rate.

        Args:
            params (list[dict]): The groups, extended in place.
            module (nn.Module): The model or, with a prefix, a part of it.
            prefix (str): The module's name in the model. Defaults to ''.
            **kwargs: Goes to the base class, whose recursion comes back here.

        Raises:
            TypeError: If neither the model nor its backbone has ``get_layer_depth``.
        """
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return
        backbone = module if hasattr(module, 'get_layer_depth') else module.backbone
        if not hasattr(backbone, 'get_layer_depth'):
            raise TypeError(f'{type(backbone).__name__} has no get_layer_depth')
        start = '' if backbone is module else 'backbone.'
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params:
            name = names[id(group['params'][0])]
            if name.startswith(start):
                depth, count = backbone.get_layer_depth(name, start)
                scale = self.layer_decay_rate ** (count - 1 - depth)
                group['lr'] = group.get('lr', self.base_lr) * scale
