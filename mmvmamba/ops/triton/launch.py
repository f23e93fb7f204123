"""Launches of the Triton kernels: tiles, sweeps, scratch memory, grids and the last sums."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from ..backend import without_autocast
from ..scan_orders import COLUMN, COLUMN_REVERSED, ROW, ROW_REVERSED
from . import backward, forward


class Tile(NamedTuple):
    """Work of a program: ``rows`` subchunks of ``steps`` positions, ``channels`` wide."""

    rows: int
    steps: int
    channels: int
    warps: int

    @property
    def positions(self) -> int:
        """Positions of a program."""
        return self.rows * self.steps


#: A program takes a sequence whole if it fits into one of the first two tiles; longer sequences are
#: cut into chunks of the last. Chosen by the instructions and registers of the compiled code.
FORWARD_TILES = (Tile(16, 4, 64, 4), Tile(32, 7, 64, 8), Tile(16, 8, 64, 4))
BACKWARD_TILES = (Tile(16, 4, 64, 8), Tile(128, 2, 16, 8), Tile(16, 5, 64, 8))
#: The tile of the combination, which has subchunks where the others have positions.
COMBINE_TILE = Tile(8, 16, 16, 1)
#: Programs of a summary: about eight for each multiprocessor of a large GPU. What would be more of
#: them is given to these as further chunks, up to a number beyond which little is saved.
PROGRAMS = 1024
MAX_REPEAT = 8
#: Positions are counted in 32 bits, and those of a last tile may lie beyond the sequence.
MAX_LENGTH = 2**31 - 1024


KERNELS = {
    kernel.__name__: kernel
    for kernel in (
        forward.summary_kernel,
        forward.combine_kernel,
        forward.scan_kernel,
        backward.backward_summary_kernel,
        backward.backward_kernel,
    )
}
# The key of a kernel in Triton's cache depends on which kernels had theirs before, as they share
# functions, and must be the same in each process.
for _kernel in KERNELS.values():
    getattr(_kernel, 'cache_key', None)  # the interpreter has none


class Launch(NamedTuple):
    """A launch of a kernel, which runs on the current GPU, or compiles for a given target.

    Args:
        kernel (JITFunction): The kernel.
        grid (tuple[int]): The number of programs.
        args (dict): The run-time arguments by name; tensors may be on the meta device to compile.
        constants (dict): The compile-time arguments by name.
        num_warps (int): The warps of a program.
        elements (int): The elements of the map times directions that it works on, without padding.
        trips (int): How often a program runs the loop of a kernel that has one.
    """

    kernel: Any
    grid: tuple[int]
    args: dict[str, Tensor | int]
    constants: dict[str, Any]
    num_warps: int
    elements: int
    trips: int

    @property
    def options(self) -> dict[str, int]:
        """Options of the compiler. Loads of a loop are not pipelined: they would take registers."""
        return {'num_warps': self.num_warps, 'num_stages': 1}

    def run(self) -> None:
        """Run on the present device."""
        self.kernel[self.grid](**self.args, **self.constants, **self.options)

    def compile(self, target: GPUTarget) -> Any:
        """Compile for a GPU that need not be here, as a first run would; return Triton's kernel.

        Not thread-safe: meanwhile, the other threads of this process see that GPU, too.
        """
        args = {
            name: _AlignedTensor(value.dtype) if isinstance(value, Tensor) else value
            for name, value in self.args.items()
        }
        triton.runtime.driver.set_active(_AbsentGPU(target))
        try:
            return self.kernel.warmup(grid=self.grid, **args, **self.constants, **self.options)
        finally:
            triton.runtime.driver.set_active(None)  # Triton recreates its default when needed
            # Triton keeps kernels by the number of the device, whatever its target.
            self.kernel.device_caches.clear()


class _AlignedTensor:
    """Stub of a tensor of less than 2 GiB, as allocators return it.

    Args:
        dtype (torch.dtype): The dtype.
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def data_ptr(self) -> int:
        return 0

    def ptr_range(self) -> int:
        return 0


class _AbsentGPU:
    """Stub of Triton's driver that provides only what compilation needs.

    Args:
        target (GPUTarget): The architecture.
    """

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _copy(value: Tensor) -> Tensor:
    """Return a contiguous copy: the results of an op share no memory."""
    return value.clone(memory_format=torch.contiguous_format)


class Sweep(NamedTuple):
    """Directions that are scanned together along one axis: at most one each way."""

    columns: bool
    forwards: int | None
    backwards: int | None


def plan_sweeps(orders: Sequence[int]) -> list[Sweep]:
    """Group the directions of a scan into sweeps."""
    sweeps = []
    axes = ((False, ROW, ROW_REVERSED), (True, COLUMN, COLUMN_REVERSED))
    for columns, forwards, backwards in axes:
        pairs = zip_longest(
            (k for k, order in enumerate(orders) if order == forwards),
            (k for k, order in enumerate(orders) if order == backwards),
        )
        sweeps += [Sweep(columns, *pair) for pair in pairs]
    return sweeps


def choose_tile(tiles: Sequence[Tile], length: int, channels: int) -> tuple[Tile, bool]:
    """Return the tile for a sequence, and whether one program takes the sequence whole.

    Low ranks are copied once for all channels of a tile, so tiles are wide. One that does not
    divide the channels is halved, but stays wider than high (backward.store_weight_gradients).

    Raises:
        ValueError: If the sequence is longer than the kernels count.
    """
    if length > MAX_LENGTH:
        raise ValueError(
            f"a scan with backend='triton' supports up to {MAX_LENGTH} positions, but got {length}"
        )
    tile = next((tile for tile in tiles if length <= tile.positions), tiles[-1])
    whole = length <= tile.positions
    if channels % tile.channels and tile.channels // 2 > tile.rows:
        tile = tile._replace(channels=tile.channels // 2, warps=tile.warps // 2)
    return tile, whole


class Scan(NamedTuple):
    """Inputs of a scan of a map (N, H, W, C), or of a sequence as a map of one row."""

    x: Tensor  # (N, H, W, C)
    delta: Tensor | None  # like x, if the time steps are given
    proj: Tensor  # (N, H, W, K, R + 2 S) or, of groups of channels, (N, H, W, G, 2 S)
    weight: Tensor | None  # (K, C, R), if the time steps have a rank
    bias: Tensor  # (K, C)
    A: Tensor  # (K, C, S)
    D: Tensor  # (K, C)
    B: Tensor | None  # (C, S), if constant
    C: Tensor | None  # (C, S), if constant
    orders: tuple[int, ...]
    softplus: bool
    target: GPUTarget

    @property
    def length(self) -> int:
        """Positions of the map."""
        return self.x.shape[1] * self.x.shape[2]

    @property
    def groups(self) -> int:
        """Number of groups of channels, each with its own B and C."""
        return 1 if self.delta is None else self.proj.shape[3]

    def tile(self, tiles: Sequence[Tile]) -> tuple[Tile, bool]:
        """Return the tile of this scan, and whether one program takes a sequence whole."""
        return choose_tile(tiles, self.length, self.x.shape[3] // self.groups)

    def parts(self, tile: Tile) -> tuple[int, int]:
        """Return the blocks of a group's channels, and the chunks of all samples."""
        N, _, _, C = self.x.shape
        subchunks = triton.cdiv(self.length, tile.steps)
        blocks = triton.cdiv(C // self.groups, tile.channels)
        return blocks, N * triton.cdiv(subchunks, tile.rows)

    def sweep(
        self, kernel: Any, sweep: Sweep, tile: Tile, tensors: dict[str, Tensor], **constants: Any
    ) -> Launch:
        """Return the launch of a kernel that works on a sweep."""
        N, H, W, C = self.x.shape
        blocks, items = self.parts(tile)
        programs = blocks * self.groups * items
        repeats = 'repeat' in kernel.arg_names
        repeat = max(1, min(programs // PROGRAMS, MAX_REPEAT)) if repeats else 1
        exact = self.x.dtype == torch.float32
        # A kernel does not read the arguments that a scan lacks.
        args: dict[str, Tensor | int] = {
            'x': self.x,
            'delta': self.x if self.delta is None else self.delta,
            'proj': self.proj,
            'weight': self.A if self.weight is None else self.weight,
            'bias': self.bias,
            'A': self.A,
            'D': self.D,
            'B_const': self.A if self.B is None else self.B,
            'C_const': self.A if self.C is None else self.C,
            **tensors,
            'k0': -1 if sweep.forwards is None else sweep.forwards,
            'k1': -1 if sweep.backwards is None else sweep.backwards,
            'length': self.length,
            'line': H if sweep.columns else W,
            'step': W,
            'subchunks': triton.cdiv(self.length, tile.steps),
            'chunks': items // N,
            'items': items,
            'repeat': repeat,
            'samples': N,
        }
        constants = {
            'channels': C,
            'groups': self.groups,
            'K': len(self.orders),
            'R': 0 if self.weight is None else self.weight.shape[2],
            'S': self.A.shape[2],
            'COLUMNS': sweep.columns,
            'SHORT_LINES': sweep.columns and H < tile.steps,
            'SOFTPLUS': self.softplus,
            'CONST_B': self.B is not None,
            'CONST_C': self.C is not None,
            'T': tile.rows,
            'J': tile.steps,
            'BC': tile.channels,
            'EXACT': exact,
            # Three products of TensorFloat-32 have float32's digits.
            'PRECISION': 'tf32x3' if exact and self.target.backend == 'cuda' else 'ieee',
            **constants,
        }
        directions = len([k for k in (sweep.forwards, sweep.backwards) if k is not None])
        return Launch(
            kernel,
            (triton.cdiv(items, repeat) * blocks * self.groups,),
            {name: args[name] for name in kernel.arg_names if name in args},
            constants,
            tile.warps,
            self.x.numel() * directions,
            repeat,
        )

    def carries(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Allocate the sums of time steps (N, K, Q, C) and the states (N, K, S, Q, C)."""
        N, _, _, C = self.x.shape
        K, _, S = self.A.shape
        Q = triton.cdiv(self.length, tile.steps)
        return _float32(self.x, N, K, Q, C), _float32(self.x, N, K, S, Q, C)

    def combine(
        self, steps: Tensor, ends: Tensor, against: bool, last_state: Tensor | None = None
    ) -> Launch:
        """Return the combination of the subchunks, with the walks or against them."""
        N, K, S, Q, C = ends.shape
        tile = COMBINE_TILE
        backwards = [(order in (ROW_REVERSED, COLUMN_REVERSED)) != against for order in self.orders]
        args: dict[str, Tensor | int] = {
            'steps': steps,
            'ends': ends,
            'A': self.A,
            'last_state': self.A if last_state is None else last_state,
            'subchunks': Q,
            'backwards': sum(bit << k for k, bit in enumerate(backwards)),
        }
        constants = {
            'channels': C,
            'K': K,
            'S': S,
            'LAST_STATE': last_state is not None,
            'T': tile.rows,
            'J': tile.steps,
            'BC': tile.channels,
        }
        return Launch(
            forward.combine_kernel,
            (N * K * S * triton.cdiv(C, tile.channels),),
            args,
            constants,
            tile.warps,
            self.x.numel() * K,
            triton.cdiv(Q, tile.positions),
        )


def _float32(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def plan_forward(scan: Scan, out: Tensor, last_state: Tensor | None = None) -> Iterator[Launch]:
    """Yield the launches that write the output and, of a sequence, the last state."""
    tile, whole = scan.tile(FORWARD_TILES)
    sweeps = plan_sweeps(scan.orders)
    ends = scan.A
    if not whole:
        steps, ends = scan.carries(tile)
        for sweep in sweeps:
            yield scan.sweep(forward.summary_kernel, sweep, tile, {'steps': steps, 'ends': ends})
        yield scan.combine(steps, ends, against=False, last_state=last_state)
    sums = out
    if len(sweeps) > 1 and out.dtype != torch.float32:
        sums = torch.empty_like(out, dtype=torch.float32)
    tensors = {'ends': ends, 'sums': sums, 'out': out}
    tensors['last_state'] = scan.A if last_state is None else last_state
    for sweep in sweeps:
        yield scan.sweep(
            forward.scan_kernel, sweep, tile, tensors, FIRST=sweep is sweeps[0],
            LAST=sweep is sweeps[-1], WHOLE=whole, LAST_STATE=whole and last_state is not None,
        )  # fmt: skip


class Gradients(NamedTuple):
    """Outputs of the kernels of a backward: gradients, and parts of sums that are still to add."""

    x: Tensor  # (N, H, W, C), of the dtype of x
    steps: Tensor  # (K, N, H, W, C), of the time steps before softplus, of the dtype of x
    proj_parts: Tensor  # (blocks, N, H, W, K or G, 2 S)
    param_parts: Tensor  # (parts, K, rows, C)
    D_parts: Tensor  # (parts, C)

    @classmethod
    def allocate(cls, scan: Scan) -> 'Gradients':
        """Allocate the memory."""
        x, (K, C, S) = scan.x, scan.A.shape
        blocks, parts = scan.parts(scan.tile(BACKWARD_TILES)[0])
        rows = 1 + S * (1 + (scan.B is not None) + (scan.C is not None))
        return cls(
            torch.empty_like(x),
            x.new_empty((K, *x.shape)),
            _float32(x, blocks, *scan.proj.shape[:4], 2 * S),
            _float32(x, parts, K, rows, C),
            _float32(x, parts, C),
        )


def plan_backward(scan: Scan, grad_y: Tensor, grads: Gradients) -> Iterator[Launch]:
    """Yield the launches of a backward."""
    tile, whole = scan.tile(BACKWARD_TILES)
    sweeps = plan_sweeps(scan.orders)
    ends = grad_ends = scan.A
    if not whole:
        steps, ends = scan.carries(tile)
        grad_ends = torch.empty_like(ends)
        tensors = {'grad_y': grad_y, 'steps': steps, 'ends': ends, 'grad_ends': grad_ends}
        # The summary keeps fewer values, so a thread takes twice the channels.
        wide = tile._replace(warps=tile.warps // 2)
        for sweep in sweeps:
            yield scan.sweep(backward.backward_summary_kernel, sweep, wide, tensors)
        yield scan.combine(steps, ends, against=False)
        yield scan.combine(steps, grad_ends, against=True)
    sums = grads.x
    if len(sweeps) > 1 and sums.dtype != torch.float32:
        sums = torch.empty_like(sums, dtype=torch.float32)
    tensors = {
        'grad_y': grad_y,
        'ends': ends,
        'grad_ends': grad_ends,
        'sums': sums,
        'grad_x': grads.x,
        'grad_steps': grads.steps,
        'proj_parts': grads.proj_parts,
        'param_parts': grads.param_parts,
        'D_parts': grads.D_parts,
    }
    for sweep in sweeps:
        yield scan.sweep(
            backward.backward_kernel, sweep, tile, tensors, FIRST=sweep is sweeps[0],
            LAST=sweep is sweeps[-1], WHOLE=whole,
        )  # fmt: skip


_recorded: list[Launch] | None = None


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Record the launches of all threads instead of running them.

    Recorded tensors are on the meta device. The ops return uninitialized results of the right
    shapes and dtypes.

    Yields:
        list[Launch]: The launches so far.
    """
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def _run(launches: Iterator[Launch]) -> None:
    for launch in launches:
        if _recorded is None:
            launch.run()
        else:
            args = {k: v.to('meta') if isinstance(v, Tensor) else v for k, v in launch.args.items()}
            _recorded.append(launch._replace(args=args))


def device_target(device: torch.device) -> GPUTarget:
    """Return the architecture that Triton compiles for on a device."""
    if device.type == 'cuda':
        return triton.runtime.driver.active.get_current_target()
    return GPUTarget('cuda', 90, 32)  # the interpreter, which compiles nothing


# ---- mmvmamba::ss2d_scan_triton ----


def ss2d_scan_inputs(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    orders: Sequence[int], target: GPUTarget,
) -> Scan:  # fmt: skip
    """Return the inputs of the kernels for a scan of a map."""
    x, proj, weight, bias, A, D = (v.contiguous() for v in (x, proj, dt_weight, dt_bias, A, D))
    return Scan(x, None, proj, weight, bias, A, D, None, None, tuple(orders), True, target)


def ss2d_scan_forward(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    orders: Sequence[int], out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return the merged map (N, H, W, C)."""
    target = device_target(x.device)
    scan = ss2d_scan_inputs(x, proj, dt_weight, dt_bias, A, D, orders, target)
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    _run(plan_forward(scan, out))
    return out


def ss2d_scan_backward(
    grad_y: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor,
    D: Tensor, orders: Sequence[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of the tensors, in their order."""
    target = device_target(x.device)
    scan = ss2d_scan_inputs(x, proj, dt_weight, dt_bias, A, D, orders, target)
    grads = Gradients.allocate(scan)
    _run(plan_backward(scan, grad_y.contiguous(), grads))
    low = scan.proj[..., : dt_weight.shape[2]]
    grad_low, grad_weight = rank_gradients(grads.steps, low, dt_weight)
    params = grads.param_parts.sum(0)  # (K, rows, C)
    return (
        grads.x,
        torch.cat([grad_low, grads.proj_parts.sum(0).to(proj.dtype)], -1),
        grad_weight,
        _copy(params[:, 0]),
        _copy(params[:, 1:].transpose(1, 2)),
        _copy(grads.D_parts.sum(0).expand_as(D)),
    )


def rank_gradients(grad_steps: Tensor, low: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the low ranks (N, H, W, K, R) and of dt_weight (K, C, R).

    ``grad_steps`` is (K, N, H, W, C).
    """
    grads = grad_steps.flatten(1, 3)  # (K, N H W, C)
    with without_autocast(grads.device):
        grad_low = torch.bmm(grads, weight.to(low.dtype))
        low = low.flatten(0, 2)  # (N H W, K, R)
        # bmm takes out_dtype only with cuBLAS.
        if grads.is_cuda and torch.version.hip is None and grads.dtype != torch.float32:
            grad_weight = torch.bmm(grads.mT, low.transpose(0, 1), out_dtype=torch.float32)
        else:
            grad_weight = torch.bmm(grads.float().mT, low.float().transpose(0, 1))
    return grad_low.transpose(0, 1).unflatten(0, grad_steps.shape[1:4]), grad_weight


# ---- mmvmamba::selective_scan_triton ----


def selective_scan_inputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, softplus: bool, target: GPUTarget,
) -> Scan:  # fmt: skip
    """Return the inputs of the kernels for a scan of sequences, transposed to (N, 1, L, C).

    B and C are copied next to each other, (N, 1, L, G, 2 S), with zeros instead of a constant.
    """
    zeros = A.new_zeros(A.shape[0])
    weights = [v for v in (B, C) if v.dim() == 4]
    shape = weights[0].shape if weights else (u.shape[0], 1, A.shape[1], u.shape[2])
    rows = torch.cat([v if v.dim() == 4 else u.new_zeros(shape) for v in (B, C)], 2)
    constants = [None if v.dim() == 4 else v.contiguous() for v in (B, C)]
    return Scan(
        x=u.transpose(1, 2).contiguous().unsqueeze(1),
        delta=delta.transpose(1, 2).contiguous().unsqueeze(1),
        proj=rows.permute(0, 3, 1, 2).contiguous().unsqueeze(1),
        weight=None,
        bias=(zeros if delta_bias is None else delta_bias).contiguous().unsqueeze(0),
        A=A.contiguous().unsqueeze(0),
        D=(zeros if D is None else D).contiguous().unsqueeze(0),
        B=constants[0],
        C=constants[1],
        orders=(ROW,),
        softplus=softplus,
        target=target,
    )


def selective_scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output (B, D, L) and the last state (B, D, N)."""
    target = device_target(u.device)
    scan = selective_scan_inputs(u, delta, A, B, C, D, delta_bias, delta_softplus, target)
    out = torch.empty_like(scan.x, dtype=out_dtype)
    last_state = _float32(u, *u.shape[:2], A.shape[1])
    _run(plan_forward(scan, out, last_state))
    return out.squeeze(1).transpose(1, 2).contiguous(), last_state


def selective_scan_backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of the tensors, in their order; empty for an argument that is None."""
    target = device_target(u.device)
    scan = selective_scan_inputs(u, delta, A, B, C, D, delta_bias, delta_softplus, target)
    grads = Gradients.allocate(scan)
    _run(plan_backward(scan, grad_out.transpose(1, 2).contiguous().unsqueeze(1), grads))
    S = A.shape[1]
    rows = grads.proj_parts.sum(0).squeeze(1).permute(0, 2, 3, 1).split(S, 2)  # (B, G, N, L) each
    params = grads.param_parts.sum((0, 1))  # (rows, D)
    grad_A, *constants = params[1:].split(S)
    constants = iter(constants)
    grad_B, grad_C = (
        _copy(row.to(v.dtype) if v.dim() == 4 else next(constants).T)
        for row, v in zip(rows, (B, C), strict=True)
    )
    none = grad_out.new_empty((0,))
    return (
        grads.x.squeeze(1).transpose(1, 2).contiguous(),
        grads.steps[0].squeeze(1).transpose(1, 2).contiguous(),
        _copy(grad_A.T),
        grad_B,
        grad_C,
        none if D is None else grads.D_parts.sum(0),
        none.clone() if delta_bias is None else params[0].clone(),
    )
