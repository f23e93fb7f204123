"""The VSS block: SS2D and, where there is one, an MLP, each with norm and residual."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import DropPath, Mlp
from .ss2d import SS2D


class VSSBlock(nn.Module):
    """x + DropPath(SS2D(norm(x))), then x + DropPath(MLP(norm2(x))) (VMamba, Fig. 3d).

    Args:
        dim (int): Channels d.
        drop_path (float): Probability of dropping each branch. Defaults to 0.
        mlp_ratio (float): Hidden channels of the MLP over ``dim``; 0 for no MLP. Defaults to 4.
        mlp_act (str): The MLP's activation. Defaults to 'gelu'.
        **ssm: The arguments of :class:`SS2D`.
    """

    def __init__(
        self,
        dim: int,
        drop_path: float = 0.0,
        mlp_ratio: float = 4.0,
        mlp_act: str = 'gelu',
        **ssm,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, **ssm)
        self.drop_path = DropPath(drop_path)
        self.norm2 = self.mlp = None
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio), mlp_act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, d) -> (N, H, W, d)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
