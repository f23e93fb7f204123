"""SS2D, the 2-D selective scan module of VMamba (arXiv 2401.10166, Sec. 4.2 and Fig. 3)."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvmamba.ops import ss2d_scan
from mmvmamba.ops.backend import BACKENDS, accumulate_dtype
from mmvmamba.ops.scan_orders import CASCADE, ROW, ROW_REVERSED, Order, resolve_pattern

from .cpu_inference import Conv2d, LayerNorm, cast_for_products, is_plain_linear, plain, project
from .layers import ACTIVATIONS, channels_first, channels_last
from .settings import check_choice, check_conv_kernel, check_settings, check_width

SSM_INITS = ('mamba', 'random', 'zero')
GATES = ('none', 'act', 'linear')


class SpatialSoftmax(nn.Module):
    """Softmax over the positions of a map (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).softmax(dim=1).view_as(x)


def _depthwise3(dim: int) -> list[nn.Module]:
    conv = Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
    return [channels_first(), conv, channels_last()]


#: Normalizations after the scan, over (N, H, W, C), for C channels. The indices of the layers in a
#: sequence are part of the keys in the authors' files.
OUT_NORMS: dict[str, Callable[[int], nn.Module]] = {
    'ln': LayerNorm,
    'none': lambda dim: nn.Identity(),
    'dwconv3': lambda dim: nn.Sequential(*_depthwise3(dim)),
    'ln_dwconv3': lambda dim: nn.Sequential(LayerNorm(dim), *_depthwise3(dim)),
    'softmax': lambda dim: SpatialSoftmax(),
    'sigmoid': lambda dim: nn.Sigmoid(),
}
_OWN_NORMS = frozenset(OUT_NORMS)


def register_out_norm(name: str, fn: Callable[[int], nn.Module], force: bool = False) -> None:
    """Register a normalization after the scan under a name for ``out_norm``.

    Args:
        name (str): A new name.
        fn (Callable): ``fn(C)`` returns a module that maps (N, H, W, C) to the same shape. Its
            parameters are part of the state dict, after ``out_norm.``.
        force (bool): Whether to replace a normalization registered under this name. Defaults to
            False.

    Raises:
        TypeError: If ``name`` is not a str or ``fn`` is not callable.
        ValueError: If the name is taken.
    """
    if not isinstance(name, str):
        raise TypeError(f'name must be a str, but got {type(name).__name__}')
    if not callable(fn) or isinstance(fn, nn.Module):
        raise TypeError(
            'fn must be a class or function that takes the number of channels, but got '
            f'{type(fn).__name__}'
        )
    taken = _OWN_NORMS if force else OUT_NORMS.keys()
    if name in taken:
        raise ValueError(
            f'name must not be one of {sorted(taken)}, but got {name!r}; pass force=True to '
            'replace a registered normalization'
        )
    OUT_NORMS[name] = fn


def check_scan(scan: str | Sequence[Order]) -> str | tuple[Order, ...]:
    """Check a pattern of :func:`mmvmamba.ops.ss2d_scan`, or 'cascade', and make it hashable."""
    if isinstance(scan, str) and scan == CASCADE:
        return CASCADE
    resolve_pattern(scan, 'scan', [CASCADE])
    return scan if isinstance(scan, str) else tuple(scan)


@torch.no_grad()
def init_dt_bias(bias: Tensor) -> None:
    """Set a bias to the inverse softplus of time steps that are log-uniform in [1e-3, 0.1]."""
    dt = torch.empty_like(bias).uniform_(math.log(1e-3), math.log(0.1)).exp_()
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))


@plain
class SS2D(nn.Module):
    """2-D selective scan (SS2D) between linear layers, with a depthwise convolution.

    The arguments that are not listed are settings of :class:`mmvmamba.nn.Arch`, with the same
    defaults.

    Args:
        dim (int): Input and output channels d; the inner channels are C = int(ssm_ratio * d).
        drop_rate (float): Dropout of the result. Defaults to 0.
        backend (str): The scan's backend: 'auto', 'native', 'triton' or 'reference', see
            :func:`mmvmamba.ops.ss2d_scan`. Defaults to 'auto'.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a name or a number is not allowed.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        dt_rank: int | None = None,
        gate: str = 'none',
        conv_kernel: int = 3,
        conv_bias: bool = False,
        act: str = 'silu',
        scan: str | Sequence[Order] = 'cross',
        ssm_init: str = 'mamba',
        out_norm: str = 'ln',
        out_act: bool = False,
        drop_rate: float = 0.0,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        check_choice('gate', gate, GATES)
        check_choice('act', act, ACTIVATIONS)
        check_choice('ssm_init', ssm_init, SSM_INITS)
        check_choice('out_norm', out_norm, OUT_NORMS)
        check_choice('backend', backend, BACKENDS)
        check_settings(dim=dim, d_state=d_state, ssm_ratio=ssm_ratio, dt_rank=dt_rank)
        check_settings(conv_bias=conv_bias, out_act=out_act, drop_rate=drop_rate)
        check_conv_kernel(conv_kernel)
        check_width('ssm_ratio', ssm_ratio, dim)
        self.dim = dim
        self.d_state = d_state
        self.d_inner = int(ssm_ratio * dim)
        self.dt_rank = dt_rank or math.ceil(dim / 16)
        self.gate = gate
        self.scan = check_scan(scan)
        directions = 4 if self.scan == CASCADE else len(resolve_pattern(self.scan))
        self.directions = directions
        self.backend = backend

        self.in_proj = nn.Linear(dim, self.d_inner * (1 if gate == 'none' else 2), bias=False)
        self.act = ACTIVATIONS[act]()
        self.conv2d = None
        if conv_kernel > 1:
            self.conv2d = Conv2d(
                self.d_inner,
                self.d_inner,
                conv_kernel,
                padding=conv_kernel // 2,
                groups=self.d_inner,
                bias=conv_bias,
            )
        inner = self.dt_rank + 2 * d_state
        self.x_proj_weight = nn.Parameter(torch.empty(directions, inner, self.d_inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(directions, self.d_inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(directions, self.d_inner))
        self.A_logs = nn.Parameter(torch.empty(directions * self.d_inner, d_state))
        self.Ds = nn.Parameter(torch.empty(directions * self.d_inner))
        self.out_norm = OUT_NORMS[out_norm](self.d_inner)
        if not isinstance(self.out_norm, nn.Module):
            raise TypeError(
                f'out_norm {out_norm!r} must be registered with a function that returns a '
                f'torch.nn.Module, but it returned {type(self.out_norm).__name__}'
            )
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.reset_ssm_parameters(ssm_init)

    @torch.no_grad()
    def reset_ssm_parameters(self, ssm_init: str) -> None:
        """Initialize the SSM's parameters (VMamba's appendix; Mamba's code for 'mamba')."""
        bound = self.d_inner**-0.5
        self.x_proj_weight.uniform_(-bound, bound)
        self.Ds.fill_(1)
        if ssm_init == 'mamba':
            bound = self.dt_rank**-0.5
            self.dt_projs_weight.uniform_(-bound, bound)
            init_dt_bias(self.dt_projs_bias)
            states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
            self.A_logs.copy_(states.log().expand_as(self.A_logs))
        elif ssm_init == 'random':
            self.dt_projs_weight.normal_(std=0.1)
            self.dt_projs_bias.normal_(std=0.1)
            self.A_logs.normal_()
        else:
            self.dt_projs_weight.uniform_(0, 0.1)
            self.dt_projs_bias.uniform_(0, 0.1)
            self.A_logs.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, H, W, d) -> (N, H, W, d).

        Raises:
            TypeError: If ``x`` is not a tensor.
            ValueError: If ``x`` is not 4-D or has other channels.
        """
        self._check_map(x)
        x, z = (self.in_proj(x), None) if self.gate == 'none' else self._gated_projections(x)
        if self.conv2d is not None:
            x = self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # the storage stays NHWC
        x = self.act(x)
        y = self.cascade_core(x) if self.scan == CASCADE else self.core(x, self.scan)
        if self.x_proj_weight.dtype == x.dtype:
            y = y.to(x.dtype)  # without autocast the norm accepts only the dtype of its weights
        y = self.out_norm(y).to(x.dtype)
        y = self.out_act(y)
        if z is not None:
            y = y * (self.act(z) if self.gate == 'act' else z)
        return self.drop(self.out_proj(y))

    def _gated_projections(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project a map to the one that is scanned and its gate, (N, H, W, C) each."""
        if not is_plain_linear(self.in_proj):
            x, z = self.in_proj(x).chunk(2, dim=-1)
            return x, z
        # Two products with halves of the weight give two contiguous maps; the halves of one
        # product would be strided. Under autocast each of them would cast the map.
        x = cast_for_products(x)
        weight_x, weight_z = self.in_proj.weight.chunk(2)
        return F.linear(x, weight_x), F.linear(x, weight_z)

    def _check_map(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f'x must be a torch.Tensor, but got {type(x).__name__}')
        # A trace of torch.jit would record the comparison of a size.
        if x.dim() != 4 or (not torch.jit.is_tracing() and x.shape[-1] != self.dim):
            raise ValueError(f'x must have shape (N, H, W, {self.dim}), but got {tuple(x.shape)}')

    def core(self, x: Tensor, pattern: str | tuple[Order, ...], first: int = 0) -> Tensor:
        """Project a map (N, H, W, C) to the SSM's input-dependent parameters and scan it.

        ``first`` is the first direction whose parameters are used.
        """
        # The sum of four directions could overflow float16.
        out_dtype = torch.float32 if x.dtype == torch.float16 else None
        arguments = self.scan_arguments(x, pattern, first)
        return ss2d_scan(*arguments, out_dtype=out_dtype, backend=self.backend)

    def scan_arguments(
        self, x: Tensor, pattern: str | tuple[Order, ...], first: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, str | tuple[Order, ...]]:
        """Return the first seven arguments of :func:`mmvmamba.ops.ss2d_scan` for a map."""
        count = self.directions if isinstance(pattern, str) else len(pattern)
        parameters = [
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs.view(self.directions, self.d_inner, self.d_state),
            self.Ds.view(self.directions, self.d_inner),
        ]
        # The backward of a slice fills and copies, even if the slice is the whole.
        if first or count < self.directions:
            parameters = [parameter[first : first + count] for parameter in parameters]
        x_proj_weight, dt_weight, dt_bias, A_log, D = parameters
        # The projection commutes with reordering, so it runs once, in image order.
        proj = project(x, x_proj_weight.flatten(0, 1))
        A = -A_log.to(accumulate_dtype(x.dtype)).exp()
        return x, proj.to(x.dtype).unflatten(-1, (count, -1)), dt_weight, dt_bias, A, D, pattern

    def cascade_core(self, x: Tensor) -> Tensor:
        """Scan each row in both directions, then each column of the normalized result."""
        channels = x.shape[3:]
        x = F.layer_norm(x, channels).to(x.dtype)
        y = self._row_core(x)
        y = F.layer_norm(y, channels).to(x.dtype).transpose(1, 2)  # (N, W, H, C)
        return self._row_core(y, first=2).transpose(1, 2)

    def _row_core(self, x: Tensor, first: int = 0) -> Tensor:
        """Scan each row of a map (N, H, W, C) both ways."""
        rows = x.flatten(0, 1).unsqueeze(1)  # (N * H, 1, W, C)
        y = self.core(rows, (ROW, ROW_REVERSED), first)
        return y.squeeze(1).unflatten(0, x.shape[:2])
