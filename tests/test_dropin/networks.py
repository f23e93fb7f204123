"""Small networks that import the compiled modules, as others' networks do."""

import causal_conv1d_cuda
import selective_scan_cuda
import selective_scan_cuda_core
import selective_scan_cuda_oflex
import torch
from causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from mamba_ssm.ops.triton.layer_norm import RMSNorm
from torch import nn


class Oflex(torch.autograd.Function):
    """float32 results of half inputs."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, softplus):
        out, states, *_ = selective_scan_cuda_oflex.fwd(
            u, delta, A, B, C, D, delta_bias, softplus, 1, True
        )
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, states)
        ctx.softplus = softplus
        return out

    @staticmethod
    def backward(ctx, grad):
        *tensors, states = ctx.saved_tensors
        grads = selective_scan_cuda_oflex.bwd(*tensors, grad, states, ctx.softplus, 1)
        return *grads, None


class Core(torch.autograd.Function):
    """Results of the dtype of the input."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, softplus):
        out, states, *_ = selective_scan_cuda_core.fwd(
            u, delta, A, B, C, D, delta_bias, softplus, 1
        )
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, states)
        ctx.softplus = softplus
        return out

    @staticmethod
    def backward(ctx, grad):
        *tensors, states = ctx.saved_tensors
        grads = selective_scan_cuda_core.bwd(*tensors, grad, states, ctx.softplus, 1)
        return *grads, None


class Gated(torch.autograd.Function):
    """The extension of mamba_ssm. The gradient of z is written beside others', as Mamba does."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, softplus):
        out, states, *rest = selective_scan_cuda.fwd(u, delta, A, B, C, D, z, delta_bias, softplus)
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, states, out, *rest)
        ctx.softplus = softplus
        last_state = states[:, :, -1, 1::2]
        return rest[0] if rest else out, last_state

    @staticmethod
    def backward(ctx, grad, _):
        u, delta, A, B, C, D, z, delta_bias, states, out, *rest = ctx.saved_tensors
        tensors = u, delta, A, B, C, D, z, delta_bias
        if z is None:
            *grads, grad_bias = selective_scan_cuda.bwd(
                *tensors, grad, states, None, None, ctx.softplus, False
            )
            return *grads, None, grad_bias, None
        both = torch.empty_like(torch.cat([z, z], 1))
        grad_z = both[:, z.shape[1] :]
        *grads, grad_bias, returned, out_z = selective_scan_cuda.bwd(
            *tensors, grad, states, out, grad_z, ctx.softplus, True
        )
        assert torch.equal(returned, grad_z) and torch.equal(out_z, rest[0])
        return *grads, grad_z, grad_bias, None


class Convolution(torch.autograd.Function):
    """Causal convolution and SiLU, with the gradient of x written to a given tensor."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight, bias)
        return causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, None, None, True)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        _, grad_weight, grad_bias, _ = causal_conv1d_cuda.causal_conv1d_bwd(
            x, weight, bias, grad, None, None, None, grad_x, False, True
        )
        return grad_x, grad_weight, grad_bias


class Mixer(nn.Module):
    """Norm, causal convolution and a gated scan with weights of two groups."""

    def __init__(self, channels=6, states=3):
        super().__init__()
        self.norm = RMSNorm(channels)
        self.in_proj = nn.Linear(channels, 2 * channels)
        self.conv = nn.Parameter(torch.randn(channels, 4) / 2)
        self.params = nn.Linear(channels, channels + 4 * states)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        """(N, L, D) -> (N, L, D)."""
        channels, states = self.A_log.shape
        u, z = self.in_proj(self.norm(x)).transpose(1, 2).chunk(2, 1)
        u = causal_conv1d_fn(u, self.conv, activation='silu')
        delta, *weights = (
            self.params(u.transpose(1, 2))
            .transpose(1, 2)
            .split((channels, 2 * states, 2 * states), 1)
        )
        B, C = (w.unflatten(1, (2, states)) for w in weights)
        y = selective_scan_fn(u, delta, -self.A_log.exp(), B, C, self.D, z, delta_softplus=True)
        return x + y.transpose(1, 2)
