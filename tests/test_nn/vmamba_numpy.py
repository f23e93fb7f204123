"""A whole VMamba by its definition: NumPy in float64 that calls nothing of the package.

Slow and plain. Maps are (N, H, W, C); ``p`` holds the tensors of a model by their names.
"""

import math

import numpy as np

from . import definition


def part(p, prefix):
    """The tensors below a name."""
    start = prefix + '.'
    return {key.removeprefix(start): value for key, value in p.items() if key.startswith(start)}


def norm(x, p):
    """No norm where there are no weights of one."""
    if not p:
        return x
    return definition.layer_norm(x, p['weight'], p['bias'])


def linear(x, p):
    return x @ p['weight'].T + p.get('bias', 0.0)


def convolve(x, p, stride, padding):
    """A dense convolution, weight (out, in, k, k)."""
    weight = p['weight']
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    H, W = ((size - k) // stride + 1 for size in x.shape[1:3])
    out = np.zeros((x.shape[0], H, W, weight.shape[0]))
    for i in range(H):
        for j in range(W):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.einsum('nhwc,ochw->no', window, weight)
    return out + p['bias']


def stem(x, kind, p):
    if kind == 'patch':
        return norm(convolve(x, part(p, '0'), 4, 0), part(p, '2'))
    x = norm(convolve(x, part(p, '0'), 2, 1), part(p, '2'))
    x = definition.activate('gelu', x)
    return norm(convolve(x, part(p, '5'), 2, 1), part(p, '7'))


def merge_patches(x, p):
    """Pads to even sizes and stacks (0, 0), (1, 0), (0, 1), (1, 1) of each 2x2 patch."""
    N, H, W, C = x.shape
    padded = np.zeros((N, H + H % 2, W + W % 2, C))
    padded[:, :H, :W] = x
    out = np.zeros((N, padded.shape[1] // 2, padded.shape[2] // 2, 4 * C))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            corners = [padded[:, 2 * i + a, 2 * j + b] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            out[:, i, j] = np.concatenate(corners, axis=-1)
    return linear(norm(out, part(p, 'norm')), part(p, 'reduction'))


def downsample(x, kind, p):
    if kind == 'merging':
        return merge_patches(x, p)
    padding = 0 if kind == 'conv2x2' else 1
    return norm(convolve(x, part(p, '1'), 2, padding), part(p, '3'))


def cubic(size, new):
    """Keys' cubic convolution with a = -0.75, the border repeated, as a matrix (new, size)."""
    out = np.zeros((new, size))
    for i in range(new):
        centre = (i + 0.5) * size / new - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            t = abs(centre - j)
            inner = 1.25 * t**3 - 2.25 * t**2 + 1
            outer = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            out[i, min(max(j, 0), size - 1)] += inner if t <= 1 else outer
    return out


def resize(x, size):
    """Maps (N, C, h, w) to ``size`` (H, W)."""
    rows, columns = (cubic(old, new) for old, new in zip(x.shape[2:], size, strict=True))
    return np.einsum('Hh,nchw,Ww->ncHW', rows, x, columns)


def block(x, p, settings):
    x = x + definition.ss2d(norm(x, part(p, 'norm')), part(p, 'op'), **settings)
    if 'norm2.weight' not in p:
        return x
    hidden = linear(norm(x, part(p, 'norm2')), part(p, 'mlp.fc1'))
    value, gate = np.split(hidden, 2, axis=-1) if settings['mlp_gate'] else (1.0, hidden)
    hidden = value * definition.activate(settings['mlp_act'], gate)
    return x + linear(hidden, part(p, 'mlp.fc2'))


def stages(images, p, settings):
    """Images (N, 3, H, W) -> the map of each stage before its downsampling."""
    x = stem(images.transpose(0, 2, 3, 1), settings['stem'], part(p, 'patch_embed'))
    if 'pos_embed' in p:
        x = x + resize(p['pos_embed'], x.shape[1:3]).transpose(0, 2, 3, 1)
    for i, depth in enumerate(settings['depths']):
        for j in range(depth):
            x = block(x, part(p, f'layers.{i}.blocks.{j}'), settings)
        yield x
        if i + 1 < len(settings['depths']):
            x = downsample(x, settings['downsample'], part(p, f'layers.{i}.downsample'))


def classify(images, p, settings):
    """Images (N, 3, H, W) -> class scores (N, classes)."""
    *_, x = stages(images, p, settings)
    x = norm(x, part(p, 'classifier.norm')).mean((1, 2))
    return linear(x, part(p, 'classifier.head'))


def features(images, p, settings):
    """Images (N, 3, H, W) -> the normalized maps (N, C, H, W) of a backbone."""
    maps = enumerate(stages(images, p, settings))
    return [norm(x, part(p, f'outnorm{i}')).transpose(0, 3, 1, 2) for i, x in maps]
