"""The small layers of a block; norm weights are stored minus one, as in the released reference.

Shapes: B batch, L length, D features, N CEMA order, G groups.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.models.span import Span
from litmegalodon.models.step import is_step
from litmegalodon.ops import NormState, cema, cema_end, timestep_norm, timestep_norm_end
from litmegalodon.ops.cema.step import KeptCoefficients, StepCoefficients
from litmegalodon.ops.dispatch import compute_dtype
from litmegalodon.ops.timestep_norm.step import timestep_norm_step


class Linear(nn.Linear):
    """nn.Linear without its own initialisation: models/init.py is the one place for that."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class KeepsFloat32(nn.Module):
    """A module whose parameters stay float32 when the model is cast to bfloat16.

    A bfloat16 CEMA coefficient, or weight + 1, loses what it has learnt.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            if tensor.is_floating_point() and out.dtype in (torch.bfloat16, torch.float16):
                return tensor.to(out.device, torch.float32)
            return out

        return super()._apply(keep, recurse)


class TimestepNorm(KeepsFloat32):
    """Group normalisation by all tokens so far; see `litmegalodon.ops.timestep_norm`."""

    def __init__(self, dim: int, num_groups: int, eps: float, impl: str):
        super().__init__()
        self.num_groups, self.eps, self.impl = num_groups, eps, impl
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(
        self,
        x: Tensor,
        state: NormState | None,
        resets: Tensor | None,
        span: Span | None = None,
    ) -> tuple[Tensor, NormState]:
        """x [B, L, D] -> normalised [B, L, D], statistics after the row's last token."""
        if is_step(self, x, self.impl) and state is not None and resets is None and span is None:
            y, state = timestep_norm_step(
                x.squeeze(1), self.weight, self.bias, self.num_groups, self.eps, state
            )
            return y[:, None], state
        after = None
        if span is not None:
            end = timestep_norm_end(x, self.num_groups, resets, impl=self.impl)
            moments = torch.stack([end.mean, end.var]).to(compute_dtype(x))
            state, after = span.norm_states(span.gather("norm", moments)(), state)
        y, end = timestep_norm(
            x, self.weight, self.bias, self.num_groups, self.eps, state, resets, impl=self.impl
        )
        return y, end if after is None else after

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, groups={self.num_groups}, eps={self.eps}, impl={self.impl}"


class TokenNorm(KeepsFloat32):
    """LayerNorm or RMSNorm in the place of a TimestepNorm: each token by itself, no memory.

    The memory that it is given, a TimestepNorm's, goes through it unchanged.
    """

    def __init__(self, dim: int, num_groups: int, eps: float, kind: str):
        super().__init__()
        self.num_groups, self.eps = num_groups, eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if kind == "layer" else None

    def forward(
        self,
        x: Tensor,
        state: NormState | None,
        resets: Tensor | None,
        span: Span | None = None,
    ) -> tuple[Tensor, NormState]:
        """x [B, L, D] -> normalised [B, L, D], the memory as it was."""
        if state is None:
            state = NormState.fresh(x.shape[0], self.num_groups, x.device)
        wide, shape = compute_dtype(x), x.shape[-1:]
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.to(wide) + 1
            if self.bias is None:
                y = rms_norm(x.to(wide), shape, weight, self.eps)
            else:
                y = layer_norm(x.to(wide), shape, weight, self.bias.to(wide), self.eps)
        return y.to(x.dtype), state

    def extra_repr(self) -> str:
        kind = "rms" if self.bias is None else "layer"
        return f"{self.weight.shape[0]}, {kind}, eps={self.eps}"


def input_norm(config: MegalodonConfig, impl: str) -> TimestepNorm | TokenNorm:
    """The norm before a block's moving average, and before the output matrix."""
    sizes = (config.model_dim, config.norm_num_groups, config.norm_eps)
    if config.norm == "timestep":
        return TimestepNorm(*sizes, impl)
    return TokenNorm(*sizes, config.norm)


class ComplexEMA(KeepsFloat32):
    """Complex exponential moving average with learnt coefficients; see `litmegalodon.ops.cema`.

    With `real` its states do not rotate and its output weights have no imaginary part: the damped
    average of Mega (arXiv 2209.10655, section 3.1; its expansion beta is a factor of gamma). It is
    computed as the complex one whose angles are 0.
    """

    def __init__(self, dim: int, ndim: int, impl: str, real: bool = False):
        super().__init__()
        self.impl, self.real = impl, real
        self.alpha = nn.Parameter(torch.empty(dim, ndim, 1))
        self.delta = nn.Parameter(torch.empty(dim, ndim, 1))
        self.theta = None if real else nn.Parameter(torch.empty(dim, 1, 1))
        self.gamma = nn.Parameter(torch.empty(dim, ndim, 1 if real else 2))
        self.omega = nn.Parameter(torch.empty(dim, 1))
        self._kept = KeptCoefficients()

    def forward(
        self, x: Tensor, state: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x [B, L, D] -> y [B, L, D], h [B, D, N, 2]."""
        return cema(x, *self._coefficients, self.omega, state, resets, impl=self.impl)

    def begin(
        self, x: Tensor, state: Tensor | None, resets: Tensor | None, span: Span | None
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """Send what the other processes need; the function returned waits and is `forward`.

        Between the two is time for whatever needs no result of it. Without a span there is nothing
        to send.
        """
        if span is None:
            return lambda: self(x, state, resets)
        end = cema_end(x, *self._coefficients, self.omega, resets, impl=self.impl)
        arrive = span.gather("cema", end)

        def finish() -> tuple[Tensor, Tensor]:
            before, after = span.cema_states(arrive(), state, self._coefficients)
            return self(x, before, resets)[0], after

        return finish

    def step_coefficients(self, dtype: torch.dtype) -> StepCoefficients:
        """What `cema_step` computes with in a dtype, kept while the parameters do not change."""
        return self._kept(self._coefficients, dtype)

    @property
    def _coefficients(self) -> tuple[Tensor, ...]:
        if not self.real:
            return self.alpha, self.delta, self.theta, self.gamma
        # An angle of 2 pi sigmoid(theta) n / N that is 0.
        theta = self.alpha.new_full((len(self.alpha), 1, 1), -torch.inf)
        gamma = torch.cat([self.gamma, torch.zeros_like(self.gamma)], dim=-1)
        return self.alpha, self.delta, theta, gamma

    def extra_repr(self) -> str:
        kind = "real" if self.real else "complex"
        return f"{self.alpha.shape[0]}, ndim={self.alpha.shape[1]}, {kind}, impl={self.impl}"


class RMSNorm(KeepsFloat32):
    """The weight of x / sqrt(mean x^2 + eps) * (weight + 1), which attention computes in tiles."""

    def __init__(self, dim: int, eps: float, affine: bool):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.empty(dim)) if affine else None

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, affine={self.weight is not None}"


class LayerNorm(KeepsFloat32):
    """Weight and bias of (x - mean) / sqrt(var + eps) * (weight + 1) + bias, biased variance.

    The feed-forward network computes it in tiles.
    """

    def __init__(self, dim: int, eps: float, affine: bool):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.empty(dim)) if affine else None
        self.bias = nn.Parameter(torch.empty(dim)) if affine else None

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, affine={self.weight is not None}"
