"""The VSS block: SS2D and, where there is one, an MLP, each with norm and residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import NORMS, DropPath, Mlp, apply_norm, runs_unseen
from .ss2d import SS2D

#: Bytes of the MLP's hidden map above which a CPU runs the MLP on slabs of positions. glibc takes
#: larger blocks from the system each time, and clearing their pages can take as long as a product.
WHOLE_HIDDEN = 32 * 2**20
#: Bytes of the hidden map of one slab.
SLAB_HIDDEN = 8 * 2**20


class VSSBlock(nn.Module):
    """x + DropPath(SS2D(norm(x))), then x + DropPath(MLP(norm2(x))) (VMamba, Fig. 3d).

    Args:
        dim (int): Channels d.
        drop_path (float): Probability of dropping each branch. Defaults to 0.
        mlp_ratio (float): Hidden channels of the MLP over ``dim``; 0 for no MLP. Defaults to 4.
        mlp_act (str): The MLP's activation. Defaults to 'gelu'.
        mlp_gate (bool): Whether the MLP is gated. Defaults to False.
        mlp_drop_rate (float): Dropout in the MLP. Defaults to 0.
        norm (str): 'ln' or 'bn'. Defaults to 'ln'.
        ssm_ratio (float): Inner channels of SS2D over ``dim``; 0 for no SS2D. Defaults to 1.
        **ssm: The other arguments of :class:`SS2D`.
    """

    def __init__(
        self,
        dim: int,
        drop_path: float = 0.0,
        mlp_ratio: float = 4.0,
        mlp_act: str = 'gelu',
        mlp_gate: bool = False,
        mlp_drop_rate: float = 0.0,
        norm: str = 'ln',
        ssm_ratio: float = 1.0,
        **ssm,
    ) -> None:
        super().__init__()
        self.norm = self.op = None
        if ssm_ratio > 0:
            self.norm = NORMS[norm](dim)
            self.op = SS2D(dim, ssm_ratio=ssm_ratio, **ssm)
        self.drop_path = DropPath(drop_path)
        self.norm2 = self.mlp = None
        if mlp_ratio > 0:
            self.norm2 = NORMS[norm](dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio), mlp_act, mlp_gate, mlp_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, d) -> (N, H, W, d)."""
        if self.op is not None:
            x = x + self.drop_path(self.op(apply_norm(self.norm, x)))
        if self.mlp is not None:
            if self._goes_in_slabs(x):
                return self._add_mlp_in_slabs(x)
            x = x + self.drop_path(self.mlp(apply_norm(self.norm2, x)))
        return x

    def _goes_in_slabs(self, x: Tensor) -> bool:
        """Whether the MLP runs on slabs: inference on a large map, on a CPU, by known layers."""
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if recorded or torch.is_grad_enabled() or x.device.type != 'cpu':
            return False
        mlp, norm = self.mlp, self.norm2
        if type(mlp) is not Mlp or type(mlp.fc1) is not nn.Linear or type(norm) is not nn.LayerNorm:
            return False
        hidden = x.numel() // x.shape[-1] * mlp.fc1.out_features * x.element_size()
        if not isinstance(hidden, int):  # sizes are symbols where make_fx records for any
            return False
        if hidden <= WHOLE_HIDDEN or self.drop_path.training:
            return False
        return runs_unseen(norm, self.drop_path, *mlp.modules())  # last: the dearest question

    def _add_mlp_in_slabs(self, x: Tensor) -> Tensor:
        """(N, H, W, d) -> (N, H, W, d), as the second branch does it for the whole map."""
        rows = max(1, SLAB_HIDDEN // (self.mlp.fc1.out_features * x.element_size()))
        slabs = x.flatten(0, 2).split(rows)  # (rows, d) each
        return torch.cat([slab + self.mlp(self.norm2(slab)) for slab in slabs]).view(x.shape)
