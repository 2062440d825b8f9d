"""TimestepNorm on a GPU: statistics of tokens, a scan over segments of time, then one pass.

1. `token_statistics_kernel` (reads x): each token's group mean and two-pass variance, and those of
   each segment of S tokens, merged as Chan et al. do.
2. `statistics_scan_kernel`: what came before each segment, from segment to segment.
3. `normalise_kernel` (reads x): the running statistics inside a segment, and y.

Backward likewise: `token_gradients_kernel` (reads x and dy), `gradients_scan_kernel`, `dx_kernel`
(reads x and dy). Everything about statistics is in float64: it is 1 / d of the data, and a count
of a million in float32 would drift. Only each token's g and s and what came before each segment is
saved; running statistics are computed again, which costs less than reading them.

Shapes: B batch, L length, D features, G groups, d = D / G, S tokens a segment, J segments.
"""

import torch
import triton
from torch import Tensor

from litmegalodon.ops.dispatch import compute_dtype
from litmegalodon.ops.launch import Config, launch
from litmegalodon.ops.segments import any_in_groups
from litmegalodon.ops.timestep_norm.kernels import (
    normalise_kernel,
    statistics_scan_kernel,
    token_statistics_kernel,
)
from litmegalodon.ops.timestep_norm.kernels_backward import (
    dx_kernel,
    gradients_scan_kernel,
    token_gradients_kernel,
)
from litmegalodon.ops.timestep_norm.state import NormState

# Features of a group that one program of the last pass takes.
WIDTH = 256
# Segments that a scan takes at once.
SCAN = 256
SCAN_CONFIGS = (Config({}, num_warps=1),)


def timestep_norm_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    state: NormState,
    resets: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, NormState]:
    """See `litmegalodon.ops.timestep_norm`; a padding_mask is not served."""
    assert padding_mask is None
    y, count, mean, var, *_ = _forward(x, weight, bias, num_groups, eps, *state, resets)
    return y, NormState(count, mean, var)


def segment_length(length: int) -> int:
    """S: shorter segments where there are few tokens, so that there is work for many programs."""
    size = 128
    while size > 16 and length <= 4 * size:
        size //= 2
    return size


class _Segments:
    """Sizes that all kernels of a call share, and where documents begin."""

    def __init__(self, x: Tensor, groups: int, eps: float, resets: Tensor | None):
        self.batch, length, dim = x.shape
        self.size = segment_length(length)
        self.number = triton.cdiv(length, self.size)
        self.groups, self.features = groups, dim // groups
        self.dtype = compute_dtype(x)
        self.resets = self.marks = None
        if resets is not None:
            self.resets = resets.contiguous()
            self.marks = any_in_groups(self.resets, self.size)
        self.common = {"p_resets": self.resets, "p_marks": self.marks, "S": self.size}
        self.common |= {"L": length, "J": self.number, "G": groups, "d": self.features}
        self.eps = {"EPS": eps}
        self.width = {"WIDTH": min(WIDTH, triton.next_power_of_2(self.features))}
        block = triton.next_power_of_2(self.features)
        # Whole rows, 2,048 or 4,096 numbers at a time.
        rows = ((2048, 4), (4096, 8)) if block <= 2048 else ((4096, 8), (4096, 16))
        self.row_configs = tuple(
            Config({"BLOCK_C": block, "ROWS": min(self.size, max(1, n // block))}, num_warps=w)
            for n, w in rows
        )
        # 16 or 32 numbers a thread; at 64 token_gradients_kernel runs out of registers.
        columns = ((32, 8), (32, 4)) if block <= 32 else ((64, 8), (32, 8), (32, 4))
        self.column_configs = tuple(
            Config({"BLOCK_C": min(block, c)}, num_warps=w) for c, w in columns
        )
        self.scan = {"J": self.number, "G": groups, "p_marks": self.marks}
        self.scan["K"] = min(SCAN, triton.next_power_of_2(self.number))

    def small(self, x: Tensor, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=x.device)

    def of_segments(self, tiles):
        return self.groups * self.number, self.batch

    def of_blocks(self, tiles):
        blocks = triton.cdiv(self.features, self.width["WIDTH"])
        return self.groups * blocks * self.number, self.batch

    def of_rows(self, tiles):
        return self.groups, self.batch


def forward_kernels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    state: NormState,
    resets: Tensor | None,
) -> tuple[Tensor, NormState, Tensor, Tensor, Tensor]:
    """Start all kernels of the forward pass.

    Returns:
        y, the statistics after the last token, and for the backward pass g, s [B, L, G] and what
        came before each segment, float64 [B, 3, G, J + 1].
    """
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    segments = _Segments(x, num_groups, eps, resets)
    batch, length, _ = x.shape
    g, s = (
        torch.empty(batch, length, num_groups, dtype=segments.dtype, device=x.device)
        for _ in range(2)
    )
    items = segments.small(x, batch, 3, num_groups, segments.number)
    arguments = {"p_x": x, "p_g": g, "p_s": s, "p_items": items}
    launch(
        token_statistics_kernel,
        segments.of_segments,
        segments.common | arguments,
        segments.row_configs,
    )
    entering = segments.small(x, batch, 3, num_groups, segments.number + 1)
    last = NormState(
        torch.empty(batch, dtype=torch.int64, device=x.device),
        segments.small(x, batch, num_groups),
        segments.small(x, batch, num_groups),
    )
    arguments = {"p_items": items, "p_entering": entering}
    arguments |= {f"p_{k}": v.contiguous() for k, v in state._asdict().items()}
    arguments |= {f"p_last_{k}": v for k, v in last._asdict().items()}
    launch(statistics_scan_kernel, segments.of_rows, segments.scan | arguments, SCAN_CONFIGS)
    y = torch.empty_like(x)
    arguments = {"p_x": x, "p_weight": weight, "p_bias": bias, "p_g": g, "p_s": s}
    arguments |= {"p_entering": entering, "p_y": y} | segments.eps | segments.width
    launch(
        normalise_kernel, segments.of_blocks, segments.common | arguments, segments.column_configs
    )
    return y, last, g, s, entering


def backward_kernels(
    dy: Tensor,
    d_mean: Tensor | None,
    d_var: Tensor | None,
    x: Tensor,
    weight: Tensor,
    num_groups: int,
    eps: float,
    resets: Tensor | None,
    g: Tensor,
    s: Tensor,
    entering: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Start all kernels of the backward pass.

    Returns:
        Gradients of x, weight, bias and of the incoming mean and variance (in float64 but for x's).
    """
    x, dy, weight = x.contiguous(), dy.contiguous(), weight.contiguous()
    segments = _Segments(x, num_groups, eps, resets)
    batch, _, dim = x.shape
    a, b = torch.empty_like(g), torch.empty_like(g)
    items = segments.small(x, batch, 3, num_groups, segments.number)
    affine = torch.empty(batch, segments.number, 2, dim, dtype=segments.dtype, device=x.device)
    shared = {"p_x": x, "p_dy": dy, "p_weight": weight, "p_g": g, "p_s": s, "p_a": a, "p_b": b}
    shared |= segments.common | segments.eps | {"p_entering": entering}
    arguments = {"p_items": items, "p_affine": affine}
    launch(
        token_gradients_kernel, segments.of_segments, shared | arguments, segments.column_configs
    )

    # The returned statistics are those of the last token.
    n, mean, _ = entering[..., -1].unbind(1)  # B x G each
    of_mean, of_var = (torch.zeros_like(n) if v is None else v / n for v in (d_mean, d_var))
    last = torch.stack([of_mean, of_var, of_var * mean], dim=1)
    leaving = segments.small(x, batch, 3, num_groups, segments.number + 1)
    arguments = {"p_items": items, "p_last": last, "p_leaving": leaving}
    launch(gradients_scan_kernel, segments.of_rows, segments.scan | arguments, SCAN_CONFIGS)
    dx = torch.empty_like(x)
    arguments = {"p_leaving": leaving, "p_dx": dx} | segments.width
    launch(dx_kernel, segments.of_blocks, shared | arguments, segments.column_configs)

    d_weight, d_bias = (v.sum((0, 1), dtype=torch.float64) for v in affine.unbind(2))
    n_0, mean_0, _ = entering[..., 0].unbind(1)
    sum_a, sum_b, sum_c = leaving[..., 0].unbind(1)
    d_mean_0 = n_0 * (sum_a + 2 * (sum_b * mean_0 - sum_c))
    d_var_0 = n_0 * sum_b
    if resets is not None:
        forgotten = resets[:, :1]
        d_mean_0, d_var_0 = (torch.where(forgotten, 0.0, v) for v in (d_mean_0, d_var_0))
    return dx, d_weight, d_bias, d_mean_0, d_var_0


@torch.library.custom_op("litmegalodon::timestep_norm", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    count: Tensor,
    mean: Tensor,
    var: Tensor,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    state = NormState(count, mean, var)
    y, last, g, s, entering = forward_kernels(x, weight, bias, num_groups, eps, state, resets)
    return y, *last, g, s, entering


@_forward.register_fake
def _(x, weight, bias, num_groups, eps, count, mean, var, resets):
    batch, length, _ = x.shape
    g, s = (x.new_empty(batch, length, num_groups, dtype=compute_dtype(x)) for _ in range(2))
    last_mean, last_var = (x.new_empty(batch, num_groups, dtype=torch.float64) for _ in range(2))
    number = -(-length // segment_length(length))
    entering = x.new_empty(batch, 3, num_groups, number + 1, dtype=torch.float64)
    return (
        x.new_empty(x.shape),
        count.new_empty(batch, dtype=torch.int64),
        last_mean,
        last_var,
        g,
        s,
        entering,
    )


@torch.library.custom_op("litmegalodon::timestep_norm_backward", mutates_args=())
def _backward(
    dy: Tensor,
    d_mean: Tensor | None,
    d_var: Tensor | None,
    x: Tensor,
    weight: Tensor,
    num_groups: int,
    eps: float,
    resets: Tensor | None,
    g: Tensor,
    s: Tensor,
    entering: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, d_weight, d_bias, d_mean_0, d_var_0 = backward_kernels(
        dy, d_mean, d_var, x, weight, num_groups, eps, resets, g, s, entering
    )
    return dx, d_weight.to(weight.dtype), d_bias.to(weight.dtype), d_mean_0, d_var_0


@_backward.register_fake
def _(dy, d_mean, d_var, x, weight, num_groups, eps, resets, g, s, entering):
    like_weight = [weight.new_empty(weight.shape) for _ in range(2)]
    like_mean = [entering.new_empty(x.shape[0], num_groups) for _ in range(2)]
    return x.new_empty(x.shape), *like_weight, *like_mean


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.num_groups, ctx.eps, _, mean, var, resets = inputs
    _, count, _, _, *saved = output
    ctx.mark_non_differentiable(count, *saved)
    ctx.set_materialize_grads(False)
    ctx.dtypes = bias.dtype, mean.dtype, var.dtype
    ctx.save_for_backward(x, weight, resets, *saved)


def _differentiate(ctx, dy, _, d_mean, d_var, *unused):
    x, weight, resets, *saved = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    dx, d_weight, *rest = _backward(
        dy, d_mean, d_var, x, weight, ctx.num_groups, ctx.eps, resets, *saved
    )
    d_bias, d_mean_0, d_var_0 = (v.to(t) for v, t in zip(rest, ctx.dtypes, strict=True))
    return dx, d_weight, d_bias, None, None, None, d_mean_0, d_var_0, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
