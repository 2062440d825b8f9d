"""CEMA on a GPU: three passes over segments of time, none of them a transpose or an FFT.

1. `end_states_kernel`: the state that each segment's own tokens leave at its end, from x.
2. `scan_kernel`: from segment to segment, h_{j+1} = q^S h_j + p end_j, in float64 with q^S from
   float64. It is data of 1 / S of x; so however long a sequence is, float32 recurrences run over S
   tokens only, and the error of a rounded q grows no further than q^S.
3. `emit_kernel`: y, from x and the state that enters each segment.

The gradient of x is the same three passes from the last token to the first (see kernels.py), that
of the incoming state what the scan ends with. `coefficient_gradients_kernel` sums the gradients of
G = p g and of q; p's follows from G's, since y is a function of G, q, h_0 / p alone:

    d_p = Re(g d_G) + (Re(conj(dh_L) h_L) - Re(conj(dh_0) h_0)) / p

Forward reads x twice; backward reads x once and the gradient of y three times. Beside the inputs
only the states that enter the segments are saved.

Shapes: B batch, L length, D channels, N order (BLOCK_N: the next power of two), S tokens a segment,
J segments.
"""

import torch
import triton
from torch import Tensor

from litmegalodon.ops.cema.coefficients import Coefficients, coefficients
from litmegalodon.ops.cema.kernels import (
    emit_kernel,
    end_states_kernel,
    scan_kernel,
)
from litmegalodon.ops.cema.kernels_backward import coefficient_gradients_kernel
from litmegalodon.ops.dispatch import compute_dtype
from litmegalodon.ops.launch import Config, launch
from litmegalodon.ops.segments import any_in_groups

# Tokens worked on at once; the kernels take pairs and fours of them.
UNROLL = 8
# Tokens a segment, at most and at least: each segment costs its coefficients and states.
LONGEST, SHORTEST = 2048, 32
# Warps that fill a large GPU: 132 multiprocessors of 4 schedulers, 2 warps each.
PROGRAMS = 1024
SCAN_CONFIGS = (Config({"BLOCK": 64}, num_warps=2), Config({"BLOCK": 128}, num_warps=4))


def cema_triton(
    x: Tensor,
    alpha: Tensor,
    delta: Tensor,
    theta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `litmegalodon.ops.cema`."""
    c = coefficients(alpha, delta, theta, gamma)
    y, h, _ = _forward(x, *c, omega, state, resets)
    return y, h


def segment_length(batch: int, length: int, dim: int) -> int:
    """S: as long as leaves half the programs that fill a GPU, with the fewest channels each."""
    segment = LONGEST
    while segment > SHORTEST and 2 * _programs(batch, length, dim, segment, 8) < PROGRAMS:
        segment //= 2
    return segment


def _programs(batch: int, length: int, dim: int, segment: int, block_d: int) -> int:
    return batch * -(-dim // block_d) * -(-length // segment)


def _configs(batch: int, length: int, dim: int, segment: int, block_n: int) -> tuple[Config, ...]:
    """A warp a program; its lanes hold a channel each, or two or four share one's states.

    The default takes the most channels that leave enough programs.
    """
    blocks = (32, 16, 8) if block_n <= 16 else (16, 8)
    full = [b for b in blocks if _programs(batch, length, dim, segment, b) >= PROGRAMS]
    default = full[0] if full else blocks[-1]
    ordered = sorted(blocks, key=lambda b: (b != default, -b))
    return tuple(Config({"BLOCK_D": b}, num_warps=1) for b in ordered)


class _Segments:
    """Sizes that all kernels of a call share, and where documents begin."""

    def __init__(self, x: Tensor, order: int, resets: Tensor | None):
        batch, length, dim = x.shape
        self.size = segment_length(batch, length, dim)
        self.number = triton.cdiv(length, self.size)
        self.block_n = triton.next_power_of_2(order)
        self.dtype = compute_dtype(x)
        self.configs = _configs(batch, length, dim, self.size, self.block_n)
        self.resets = self.marks = self.of_segment = None
        if resets is not None:
            self.resets = resets.contiguous()
            self.marks = any_in_groups(self.resets, UNROLL)
            self.of_segment = any_in_groups(self.resets, self.size)
        self.last = length - (self.number - 1) * self.size
        self.states = (batch, self.number, 2, self.block_n, dim)
        self.common = {"L": length, "D": dim, "J": self.number, "S": self.size}
        self.common |= {"BLOCK_N": self.block_n, "UNROLL": UNROLL}
        self.common |= {"p_resets": self.resets, "p_marks": self.marks}

    def grid(self, tiles):
        return triton.cdiv(self.common["D"], tiles["BLOCK_D"]), self.number, self.states[0]


class _Tables:
    """The coefficients as the kernels read them: planes [BLOCK_N, D], D last.

    Attributes:
        powers: [5, 2, BLOCK_N, D] in the computation's dtype: q, q^2, q^4, q G, G.
        taps: [2, D]: Re sum_n G + omega, Re sum_n q G.
        carry, carry_reverse: `scan_kernel`'s, float64 [4, 2, BLOCK_N, D].
        q, g: complex128 [N, D].
    """

    def __init__(self, c: Coefficients, omega: Tensor, segments: _Segments):
        def power(n):
            return torch.polar((n * c.log_decay).exp(), n * c.angle).t()  # N x D

        q, over_segment, over_last = (power(n) for n in (1, segments.size, segments.last))
        squared = q * q
        p = c.p.t().to(q.dtype)
        self.q, self.g = q, torch.complex(c.g_re, c.g_im).t()
        weights = p * self.g
        later = q * weights
        powers = [q, squared, squared * squared, later, weights]
        self.powers = self._planes(powers, segments).to(segments.dtype)
        taps = torch.stack([weights.real.sum(0) + omega.double()[:, 0], later.real.sum(0)])
        self.taps = taps.to(segments.dtype)
        self.carry = self._planes([over_segment, over_last, p, 1 / p], segments)
        self.carry_reverse = self._planes([over_segment, over_last, q * self.g, p], segments)

    @staticmethod
    def _planes(values: list[Tensor], segments: _Segments) -> Tensor:
        """Complex [N, D] each -> float64 [rows, 2, BLOCK_N, D], zero beyond N."""
        planes = torch.view_as_real(torch.stack(values)).permute(0, 3, 1, 2)  # rows x 2 x N x D
        order = planes.shape[2]
        return torch.nn.functional.pad(planes, (0, 0, 0, segments.block_n - order)).contiguous()


def _entering(
    x: Tensor, tables: _Tables, segments: _Segments, state: Tensor | None, order: int, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Passes 1 and 2: what enters each segment and what leaves the last, h [B, D, N, 2]."""
    batch, _, dim = x.shape
    ends = torch.empty(segments.states, dtype=segments.dtype, device=x.device)
    arguments = {"p_x": x, "p_table": tables.powers, "p_ends": ends, "REVERSE": reverse}
    launch(end_states_kernel, segments.grid, segments.common | arguments, segments.configs)
    entering = torch.empty_like(ends)
    last = torch.empty(batch, dim, order, 2, dtype=segments.dtype, device=x.device)
    arguments = {
        "p_ends": ends,
        "p_table": tables.carry_reverse if reverse else tables.carry,
        "p_state": None if state is None else state.contiguous(),
        "p_resets": segments.of_segment,
        "p_entering": entering,
        "p_last": last,
        "D": dim,
        "N": order,
        "J": segments.number,
        "BLOCK_N": segments.block_n,
        "REVERSE": reverse,
    }

    def grid(tiles):
        return triton.cdiv(segments.block_n * dim, tiles["BLOCK"]), batch

    launch(scan_kernel, grid, arguments, SCAN_CONFIGS)
    return entering, last


def _emit(
    x: Tensor, entering: Tensor, tables: _Tables, segments: _Segments, reverse: bool
) -> Tensor:
    """Pass 3: y [B, L, D]."""
    y = torch.empty_like(x)
    arguments = {"p_x": x, "p_table": tables.powers, "p_taps": tables.taps, "p_y": y}
    arguments |= {"p_entering": entering, "REVERSE": reverse}
    launch(emit_kernel, segments.grid, segments.common | arguments, segments.configs)
    return y


def forward_kernels(
    x: Tensor, c: Coefficients, omega: Tensor, state: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Start all kernels of the forward pass.

    Returns:
        y [B, L, D], h [B, D, N, 2] and the states entering the segments, for the backward pass.
    """
    x = x.contiguous()
    order = c.p.shape[1]
    segments = _Segments(x, order, resets)
    tables = _Tables(c, omega, segments)
    entering, h = _entering(x, tables, segments, state, order, reverse=False)
    return _emit(x, entering, tables, segments, reverse=False), h, entering


def backward_kernels(
    dy: Tensor,
    dh: Tensor | None,
    x: Tensor,
    c: Coefficients,
    omega: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    h: Tensor,
    entering: Tensor,
) -> tuple[Tensor, Coefficients, Tensor, Tensor]:
    """Start all kernels of the backward pass.

    Returns:
        Gradients of x, of the coefficients, of omega and of the incoming state [B, D, N, 2].
    """
    x, dy = x.contiguous(), dy.contiguous()
    batch, _, dim = x.shape
    order = c.p.shape[1]
    segments = _Segments(x, order, resets)
    tables = _Tables(c, omega, segments)
    leaving, dh_0 = _entering(dy, tables, segments, dh, order, reverse=True)
    dx = _emit(dy, leaving, tables, segments, reverse=True)

    shape = (batch, segments.number, 2, *segments.states[2:])
    sums = torch.empty(shape, dtype=segments.dtype, device=x.device)
    d_omega = torch.empty(batch, segments.number, dim, dtype=segments.dtype, device=x.device)
    arguments = {"p_x": x, "p_dy": dy, "p_table": tables.powers, "p_entering": entering}
    arguments |= {"p_leaving": leaving, "p_sums": sums, "p_domega": d_omega}
    launch(
        coefficient_gradients_kernel,
        segments.grid,
        segments.common | arguments,
        segments.configs,
    )
    sums = sums.sum((0, 1), dtype=torch.float64)[..., :order, :].movedim(1, -1)  # 2 x N x D x 2
    # These are derivatives: their conjugates are the gradients.
    d_G, d_q = torch.view_as_complex(sums.contiguous())
    d_log_q = (d_q * tables.q).t()
    d_g = (d_G * c.p.t()).t()
    at_ends = 0.0
    if dh is not None:
        at_ends = at_ends + (dh.double() * h.double()).sum((0, -1))
    if state is not None:
        of_state = (dh_0.double() * state.double()).sum(-1)
        if resets is not None:
            of_state = torch.where(resets[:, :1, None], 0.0, of_state)
        at_ends = at_ends - of_state.sum(0)
    d_p = (d_G * tables.g).real.t() + at_ends / c.p
    grads = Coefficients(d_p, d_log_q.real, -d_log_q.imag, d_g.real, -d_g.imag)
    return dx, grads, d_omega.sum((0, 1), dtype=torch.float64)[:, None], dh_0


@torch.library.custom_op("litmegalodon::cema", mutates_args=())
def _forward(
    x: Tensor,
    p: Tensor,
    log_decay: Tensor,
    angle: Tensor,
    g_re: Tensor,
    g_im: Tensor,
    omega: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return forward_kernels(x, Coefficients(p, log_decay, angle, g_re, g_im), omega, state, resets)


@_forward.register_fake
def _(x, p, log_decay, angle, g_re, g_im, omega, state, resets):
    batch, length, dim = x.shape
    order = p.shape[1]
    segment = segment_length(batch, length, dim)
    dtype = compute_dtype(x)
    h = x.new_empty(batch, dim, order, 2, dtype=dtype)
    states = (batch, -(-length // segment), 2, triton.next_power_of_2(order), dim)
    return x.new_empty(x.shape), h, x.new_empty(states, dtype=dtype)


@torch.library.custom_op("litmegalodon::cema_backward", mutates_args=())
def _backward(
    dy: Tensor,
    dh: Tensor | None,
    x: Tensor,
    p: Tensor,
    log_decay: Tensor,
    angle: Tensor,
    g_re: Tensor,
    g_im: Tensor,
    omega: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    h: Tensor,
    entering: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    c = Coefficients(p, log_decay, angle, g_re, g_im)
    dx, dc, d_omega, dh_0 = backward_kernels(dy, dh, x, c, omega, state, resets, h, entering)
    dc = [v.contiguous() for v in dc]
    d_state = dh_0 if state is None else dh_0.to(state.dtype)
    return dx, *dc, d_omega.to(omega.dtype), d_state


@_backward.register_fake
def _(dy, dh, x, p, log_decay, angle, g_re, g_im, omega, state, resets, h, entering):
    d_state = h.new_empty(h.shape, dtype=h.dtype if state is None else state.dtype)
    like_p = [p.new_empty(p.shape) for _ in range(5)]
    return x.new_empty(x.shape), *like_p, torch.empty_like(omega), d_state


def _setup_context(ctx, inputs, output):
    _, h, entering = output
    ctx.mark_non_differentiable(entering)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, h, entering)


def _differentiate(ctx, dy, dh, _):
    x, *rest = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    state = rest[6]
    *grads, d_state = _backward(dy, dh, x, *rest)
    return *grads, None if state is None else d_state, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
