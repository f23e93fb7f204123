"""Activation maps of SS2D and of attention: the weight of every position for one query.

A scan is a causal linear attention with a decay (VMamba, arXiv 2401.10166, Sec. 5.2): along its
path, for channel c, y_t = sum over s <= t of M[t, s] v_s + D x_t, with v = dt x and
M[t, s] = sum over states n of C_t[n] exp(sum of dt_j A[n] over s < j <= t) B_s[n]. The paper writes
it as (Q w)(K / w)^T with w = exp(cumsum(dt A)), in which 1 / w overflows on long paths; here
the exponent is the difference, which is never positive.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Track = Callable[[Sequence], Iterable]

#: Elements of the largest tensor in the computation of a whole matrix.
_CHUNK = 2**23


@dataclass
class ScanPath:
    """One scan direction of an SS2D: M sequences of L positions, C channels and S states.

    The ``form`` of a map is 'qk' (C_t . B_s) or 'decay' (with the decay between s and t). All
    tensors but ``index`` are float64.
    """

    index: Tensor  # positions y * W + x on the map, along the path (M, L)
    x: Tensor  # input of the scan (M, L, C)
    dt: Tensor  # time steps (M, L, C)
    A: Tensor  # decay rates (C, S), not positive
    B: Tensor  # input weights, or keys (M, L, S)
    C: Tensor  # output weights, or queries (M, L, S)
    D: Tensor  # skip weights (C)
    line: int  # length of a row or column of the map along the path

    def locate(self, query: int) -> tuple[int, int]:
        """Return the sequence and the position in it of a position of the map."""
        m, t = (self.index == query).nonzero()[0].tolist()
        return m, t

    def weights(self, m: int, t: int) -> Tensor:
        """Return M[t, s] of sequence m for all s (L, C), by channel."""
        L, C = self.dt.shape[1:]
        # Summed backwards from t, so that no large sum is subtracted from another.
        steps = self.dt[m, 1 : t + 1].flip(0).cumsum(0).flip(0)
        decay = F.pad(steps, (0, 0, 0, 1)).unsqueeze(-1) * self.A  # (t + 1, C, S)
        found = ((self.C[m, t] * self.B[m, : t + 1]).unsqueeze(1) * decay.exp()).sum(-1)
        return torch.cat([found, found.new_zeros(L - t - 1, C)])

    def row(self, query: int, form: str) -> Tensor:
        """Return the map (L) of a query in path order, the mean over channels for 'decay'."""
        m, t = self.locate(query)
        if form == 'decay':
            return self.weights(m, t).mean(-1)
        row = self.B[m] @ self.C[m, t]
        row[t + 1 :] = 0
        return row

    def matrices(self, form: str) -> Tensor:
        """Return the rows of all positions (M, L, L)."""
        if form == 'qk':
            return (self.C @ self.B.mT).tril()
        L, S = self.dt.shape[1], self.A.shape[1]
        out = self.dt.new_zeros(len(self.dt), L, L)
        step = max(1, _CHUNK // L**2)
        later = torch.ones(L, L, dtype=torch.bool, device=out.device).triu(1)
        for m in range(len(self.dt)):
            for n in range(S):
                total = torch.zeros_like(out[m])
                for dt, A in zip(self.dt[m].split(step, 1), self.A[:, n].split(step), strict=True):
                    decay = (dt * A).cumsum(0).T  # (C, L)
                    decay = decay.unsqueeze(2) - decay.unsqueeze(1)
                    total += decay.masked_fill_(later, -torch.inf).exp_().sum(0)
                    del decay
                total *= torch.outer(self.C[m, :, n], self.B[m, :, n])
                out[m] += total.div_(self.dt.shape[2])
        return out


@dataclass
class ScanMaps:
    """The maps of one SS2D for one image.

    Args:
        shape (tuple[int, int]): Height and width of the map.
        passes (list[list[ScanPath]]): Directions whose outputs are added. The cascade has two
            passes, rows and then columns, the others one.
    """

    forms = ('qk', 'decay')

    shape: tuple[int, int]
    passes: list[list[ScanPath]] = field(default_factory=list)

    @property
    def paths(self) -> list[ScanPath]:
        """The directions of all passes."""
        return [path for paths in self.passes for path in paths]

    def in_path_order(self, path: ScanPath, query: int, form: str) -> Tensor:
        """Return a direction's map of a query, with a line of the path in each row."""
        return path.row(query, form).view(-1, path.line)

    def in_image_order(self, path: ScanPath, query: int, form: str) -> Tensor:
        """Return a direction's map of a query (H, W)."""
        m, _ = path.locate(query)
        out = path.dt.new_zeros(self.shape).flatten()
        out[path.index[m]] = path.row(query, form)
        return out.view(self.shape)

    def summed(self, query: int, form: str) -> Tensor:
        """Return the map of a query over all directions (H, W).

        For a cascade, this is the map of the columns followed by that of the rows, without the norm
        in between.
        """
        *before, last = self.passes
        out = sum(self.in_image_order(path, query, form) for path in last).flatten()
        for paths in reversed(before):
            row, out = out, torch.zeros_like(out)
            for path in paths:
                for index, matrix in zip(path.index, path.matrices(form), strict=True):
                    out[index] += row[index] @ matrix
        return out.view(self.shape)

    def matrix(self, form: str) -> Tensor:
        """Return the summed maps of all queries (H * W, H * W)."""
        size = self.shape[0] * self.shape[1]
        product = None
        for paths in self.passes:
            out = paths[0].dt.new_zeros(size, size)
            for path in paths:
                for index, matrix in zip(path.index, path.matrices(form), strict=True):
                    out[index[:, None], index] += matrix
            product = out if product is None else out @ product
        return product


@dataclass
class AttentionMaps:
    """The maps of one multi-head self-attention for one image, a mean over the heads.

    Args:
        shape (tuple[int, int]): Height and width of the map of patches.
        q (Tensor): Queries (heads, L, d), of which the last H * W are the patches', float64.
        k (Tensor): Keys of the same shape.
    """

    forms = ('qk', 'softmax')
    paths = ()

    shape: tuple[int, int]
    q: Tensor
    k: Tensor

    def matrix(self, form: str) -> Tensor:
        """Return the maps of all tokens (L, L), class token included."""
        scores = self.q @ self.k.mT * self.q.shape[-1] ** -0.5
        return (scores if form == 'qk' else scores.softmax(-1)).mean(0)

    def summed(self, query: int, form: str) -> Tensor:
        """Return the map of a query over the patches (H, W)."""
        size = self.shape[0] * self.shape[1]
        return self.matrix(form)[query - size, -size:].view(self.shape)


Maps = ScanMaps | AttentionMaps


def rollout(blocks: Sequence[Maps], query: int, form: str, track: Track = iter) -> Tensor:
    """Compute the attention rollout of a query over blocks (Abnar and Zuidema, arXiv 2005.00928).

    Each block is half its absolute values, with rows divided by their sums, and half the identity
    for the residual connection. This needs the maps of all L positions, L^2 numbers, each a mean
    over channels and states.

    Args:
        blocks (Sequence[ScanMaps | AttentionMaps]): The blocks in the order of the network.
        query (int): The position y * W + x.
        form (str): One of the blocks' ``forms``.
        track (Callable): Yields the items of a sequence and shows progress. Defaults to ``iter``,
            which shows nothing.

    Returns:
        Tensor: The map (H, W), which sums to 1 over all tokens.
    """
    shape = blocks[0].shape
    size = shape[0] * shape[1]
    row = None
    for block in track(blocks[::-1]):
        matrix = block.matrix(form).abs()
        sums = matrix.sum(-1)
        if row is None:
            row = torch.zeros_like(sums)
            row[query - size] = 1
        # An empty row of the matrix is taken as the identity's.
        moved = torch.where(sums > 0, row / sums, 0) @ matrix + torch.where(sums > 0, 0, row)
        row = (row + moved) / 2
        del matrix  # before the next one is computed
    return row[-size:].view(shape)
