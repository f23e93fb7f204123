"""SS2D by its definition: NumPy in float64 that calls nothing of the package."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def softplus(x):
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def activate(name, x):
    if name == 'silu':
        return x / (1 + np.exp(-x))
    if name == 'gelu':
        return x * (1 + erf(x / math.sqrt(2))) / 2
    return np.maximum(x, 0)


def layer_norm(x, weight=1.0, bias=0.0):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def depthwise(x, weight, bias=0.0):
    """x (N, H, W, C) with kernels (C, 1, k, k), zeros around the map."""
    H, W = x.shape[1:3]
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    out = np.zeros_like(x)
    for i in range(k):
        for j in range(k):
            out += padded[:, i : i + H, j : j + W] * weight[:, 0, i, j]
    return out + bias


def path(order, H, W):
    """Flat positions h * W + w in the order of a direction."""
    index = np.arange(H * W).reshape(H, W)
    return {0: index.ravel(), 1: index.T.ravel(), 2: index.ravel()[::-1], 3: index.T.ravel()[::-1]}[
        order
    ]


def scan_line(x, k, p):
    """One sequence (L, C) with the parameters of direction k."""
    C = x.shape[1]
    A = -np.exp(p['A_logs'].reshape(4, C, -1)[k])
    R, S = p['dt_projs_weight'].shape[2], A.shape[1]
    y, h = np.zeros_like(x), np.zeros((C, S))
    for t in range(len(x)):
        low, B, Ct = np.split(p['x_proj_weight'][k] @ x[t], [R, R + S])
        dt = softplus(p['dt_projs_weight'][k] @ low + p['dt_projs_bias'][k])
        h = np.exp(dt[:, None] * A) * h + (dt * x[t])[:, None] * B
        y[t] = h @ Ct + p['Ds'].reshape(4, C)[k] * x[t]
    return y


def scan_map(x, orders, p):
    H, W, C = x.shape
    flat, out = x.reshape(-1, C), np.zeros((H * W, C))
    for k, order in enumerate(orders):
        out[path(order, H, W)] += scan_line(flat[path(order, H, W)], k, p)
    return out.reshape(H, W, C)


def cascade(x, p):
    """Rows both ways with directions 0 and 1, then columns with 2 and 3, normalized before each."""
    x, y = layer_norm(x), np.zeros_like(x)
    for i in range(x.shape[0]):
        y[i] = scan_line(x[i], 0, p) + scan_line(x[i, ::-1], 1, p)[::-1]
    y, out = layer_norm(y), np.zeros_like(x)
    for j in range(x.shape[1]):
        out[:, j] = scan_line(y[:, j], 2, p) + scan_line(y[::-1, j], 3, p)[::-1]
    return out


def normalize(y, name, p):
    if name == 'ln':
        return layer_norm(y, p['out_norm.weight'], p['out_norm.bias'])
    if name == 'dwconv3':
        return depthwise(y, p['out_norm.1.weight'])
    if name == 'ln_dwconv3':
        y = layer_norm(y, p['out_norm.0.weight'], p['out_norm.0.bias'])
        return depthwise(y, p['out_norm.2.weight'])
    if name == 'softmax':
        e = np.exp(y - y.max((1, 2), keepdims=True))
        return e / e.sum((1, 2), keepdims=True)
    return 1 / (1 + np.exp(-y)) if name == 'sigmoid' else y


ORDERS = {'cross': (0, 1, 2, 3), 'unidirectional': (0,) * 4, 'bidirectional': (0, 0, 2, 2)}


def ss2d(x, p, gate, conv_kernel, act, scan, out_norm, out_act, **_):
    """x (N, H, W, d) with the layer's parameters by name."""
    x = x @ p['in_proj.weight'].T
    x, z = np.split(x, 2, axis=-1) if gate != 'none' else (x, None)
    if conv_kernel:
        x = depthwise(x, p['conv2d.weight'], p.get('conv2d.bias', 0.0))
    x = activate(act, x)
    if scan == 'cascade':
        y = np.stack([cascade(sample, p) for sample in x])
    else:
        y = np.stack([scan_map(sample, ORDERS[scan], p) for sample in x])
    y = normalize(y, out_norm, p)
    y = activate('gelu', y) if out_act else y
    if z is not None:
        y = y * (activate(act, z) if gate == 'act' else z)
    return y @ p['out_proj.weight'].T
