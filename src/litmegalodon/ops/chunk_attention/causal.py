"""Causal attention as explicit products over blocks of query rows, backward pass included.

On a CPU this beats the stock fused kernel several times over: half of the square is never computed,
values may be far wider than queries, and keys' gradients are summed in place.

Shapes: n independent attentions, Q queries, K keys (K >= Q, aligned at their ends), H heads, z and
e head sizes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from litmegalodon.ops.dispatch import backward_pass, compute_dtype

ROWS = 128


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    hidden: Callable[[int, int, int], Tensor] | None = None,
) -> Tensor:
    """Attention of query r over keys 0 .. K - Q + r.

    Args:
        q: [n, Q, H, z]; k: [n, K, H, z]; v: [n, K, H, e].
        visible: bool [n, K], keys that may be seen at all.
        hidden: gives bool [n, H, rows, keys], the pairs that DropKey hides, for (first row, end
            row, end key).

    Returns:
        [n, Q, H, e].
    """
    return _Causal.apply(q, k, v, visible, hidden)


def _heads_first(x: Tensor) -> Tensor:
    """[n, S, H, *] -> [nH, S, *]."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _heads_last(x: Tensor, heads: int) -> Tensor:
    """[nH, S, *] -> [n, S, H, *]."""
    return x.unflatten(0, (-1, heads)).transpose(1, 2)


def _add_bmm(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in total's precision where the product has a lower one."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


class _Causal(torch.autograd.Function):
    """Scores and softmax are float32 or better; products with values have the values' dtype."""

    @staticmethod
    def forward(ctx, q, k, v, visible, hidden):
        queries, keys, heads = q.shape[1], k.shape[1], q.shape[2]
        wide = compute_dtype(v)
        q, k, v = _heads_first(q).to(wide), _heads_first(k).to(wide), _heads_first(v)
        out = v.new_empty(q.shape[0], queries, v.shape[2])
        weights = []
        for first in range(0, queries, ROWS):
            end = min(first + ROWS, queries)
            end_key = keys - queries + end
            score = torch.bmm(q[:, first:end], k[:, :end_key].mT)  # nH x rows x keys
            rows = end - first
            future = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu_(1)
            score[:, :, end_key - rows :].masked_fill_(future, -torch.inf)
            if visible is not None:
                unseen = ~visible[:, None, None, :end_key]
                score.unflatten(0, (-1, heads)).masked_fill_(unseen, -torch.inf)
            if hidden is not None:
                score.unflatten(0, (-1, heads)).masked_fill_(
                    hidden(first, end, end_key), -torch.inf
                )
            weight = torch.softmax(score, dim=-1).to(v.dtype)
            if hidden is not None:
                # A row whose every key is hidden attends to nothing.
                weight.masked_fill_(score.amax(-1, keepdim=True) == -torch.inf, 0.0)
            torch.bmm(weight, v[:, :end_key], out=out[:, first:end])
            weights.append(weight)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.heads = heads
        return _heads_last(out, heads)

    @staticmethod
    @backward_pass
    def backward(ctx, grad_out):
        q, k, v, *weights = ctx.saved_tensors
        grad_out = _heads_first(grad_out)
        queries, keys = q.shape[1], k.shape[1]
        grad_q, grad_k = torch.empty_like(q), torch.zeros_like(k)
        grad_v = torch.zeros_like(v, dtype=q.dtype)
        for i, weight in enumerate(weights):
            first = i * ROWS
            end = min(first + ROWS, queries)
            end_key = keys - queries + end
            d_out = grad_out[:, first:end]
            _add_bmm(grad_v[:, :end_key], weight.mT, d_out)
            d_weight = torch.bmm(d_out, v[:, :end_key].mT).to(q.dtype)
            along = (d_weight * weight).sum(-1, keepdim=True)
            d_score = d_weight.sub_(along).mul_(weight)
            torch.bmm(d_score, k[:, :end_key], out=grad_q[:, first:end])
            grad_k[:, :end_key].baddbmm_(d_score.mT, q[:, first:end])
        grads = (_heads_last(g, ctx.heads) for g in (grad_q, grad_k, grad_v.to(v.dtype)))
        return *grads, None, None
