"""Definitions in float64, position by position, independent of the package."""

import torch


def per_channel(weights, channels, length):
    """Return B or C, (N, G, S, L), (N, S, L) or (D, S), as (N or 1, D, S, L)."""
    if weights.dim() == 2:
        return weights[None, :, :, None].expand(1, -1, -1, length)
    weights = weights if weights.dim() == 4 else weights[:, None]
    return weights.repeat_interleave(channels // weights.shape[1], 1)


def selective_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, softplus=True):
    """u, delta, z (N, D, L). Returns y (N, D, L) and the last state (N, D, S)."""
    channels, length = u.shape[1:]
    delta = delta.repeat_interleave(channels // delta.shape[1], 1)
    if delta_bias is not None:
        delta = delta + delta_bias.repeat_interleave(channels // len(delta_bias))[:, None]
    if softplus:
        delta = torch.log1p(torch.exp(delta))
    B, C = (per_channel(v, channels, length) for v in (B, C))
    state, ys = 0, []
    for t in range(length):
        dt, x = delta[:, :, t, None], u[:, :, t, None]
        state = torch.exp(dt * A) * state + dt * B[..., t] * x
        ys.append((state * C[..., t]).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * z / (1 + torch.exp(-z)), state


def causal_conv1d(x, weight, bias=None, before=None, silu=False):
    """x (N, D, L), weight (D, W), before (N, D, W - 1). Returns (N, D, L)."""
    width, length = weight.shape[1], x.shape[2]
    before = x.new_zeros(*x.shape[:2], width - 1) if before is None else before
    seen = torch.cat([before, x], 2)
    y = sum(weight[:, k, None] * seen[:, :, k : k + length] for k in range(width))
    y = y if bias is None else y + bias[:, None]
    return y / (1 + torch.exp(-y)) if silu else y


def compare(names, got, want, tolerance):
    """Compare tensors by the largest difference, relative to the largest value."""
    assert len(names) == len(got) == len(want)
    for name, a, b in zip(names, got, want, strict=True):
        assert a.shape == b.shape, name
        assert a.isfinite().all(), name
        error, size = (a.double() - b.double()).abs().max(), b.double().abs().max()
        assert error <= tolerance * size, (name, error.item(), size.item())


def doubles(tensors):
    """Return leaves in float64 of the same values."""
    return {
        name: None if v is None else v.detach().double().requires_grad_()
        for name, v in tensors.items()
    }
