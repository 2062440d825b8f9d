"""Chunk attention as a few batches of plain causal attention.

Chunk boundaries and documents' first tokens cut a sequence into runs that see nothing of one
another; each is causal attention over a contiguous stretch. The one exception is the run that
continues the incoming chunk, whose keys begin with the cached ones.

Shapes: B batch, L length, H heads, C chunk, S slots of the cache.
"""

import torch
from torch import Tensor

from litmegalodon.ops.chunk_attention.causal import ROWS, causal_attention
from litmegalodon.ops.chunk_attention.dropkey import dropped
from litmegalodon.ops.chunk_attention.places import Places
from litmegalodon.ops.chunk_attention.rope import rotate, rotation
from litmegalodon.ops.chunk_attention.state import KeyValueState, advance
from litmegalodon.ops.dispatch import backward_pass
from litmegalodon.ops.segments import Segments

Drop = tuple[float, int] | None


def chunk_attention_pytorch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    rope_base: float,
    places: Places,
    kv: KeyValueState,
    resets: Tensor | None,
    drop: Drop,
) -> tuple[Tensor, KeyValueState]:
    """See `litmegalodon.ops.chunk_attention`."""
    length = q.shape[1]
    if resets is not None and not resets.any():
        resets = None
    positions = places.position[:, None] + torch.arange(length, device=q.device)  # B x L
    in_chunk = (positions[:1] if places.aligned else positions) % chunk_size
    # One copy for queries and keys: the backward pass keeps it.
    factors = rotation(in_chunk, q.shape[-1], chunk_size, rope_base, q)
    q, k = rotate(q, factors), rotate(k, factors)
    if places.aligned and resets is None:
        out = _on_grid(q, k, v, chunk_size, positions, places.begin, kv, drop)
    else:
        out = _in_runs(q, k, v, chunk_size, positions, kv, resets, drop)
    return out, advance(k, v, chunk_size, places, kv, resets)


def _on_grid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    positions: Tensor,
    offset: int,
    kv: KeyValueState,
    drop: Drop,
) -> Tensor:
    """Rows `offset` into their chunk, no document begins: head, whole chunks, tail are views."""
    batch, length = q.shape[:2]
    head = min(length, -offset % chunk_size)
    whole = (length - head) // chunk_size * chunk_size
    outputs = []
    if head > 0:
        outputs.append(
            _continue(*(u[:, :head] for u in (q, k, v)), chunk_size, positions[:, :head], kv, drop)
        )
    for start, stop, size in (
        (head, head + whole, chunk_size),
        (head + whole, length, length - head - whole),
    ):
        if start < stop:
            parts = [u[:, start:stop].reshape(-1, size, *u.shape[2:]) for u in (q, k, v)]
            at = positions[:, start:stop].reshape(-1, size)
            hidden = _dropkey(drop, q.shape[2], _rows(at, batch), at, at, chunk_size)
            outputs.append(causal_attention(*parts, None, hidden).reshape(batch, -1, *v.shape[2:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _in_runs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    positions: Tensor,
    kv: KeyValueState,
    resets: Tensor | None,
    drop: Drop,
) -> Tensor:
    """Cut at chunk boundaries and resets, gather runs of similar length into padded batches."""
    batch, length = q.shape[:2]
    boundaries = positions % chunk_size == 0
    if resets is not None:
        boundaries = boundaries | resets
    runs = Segments(boundaries)
    # A row's first run continues the cached chunk unless a document or a chunk begins right there.
    row_starts = runs.starts % length == 0
    continues = row_starts & ~boundaries[runs.starts // length, 0]
    continues &= (kv.length > 0)[runs.starts // length]

    # Every token gets a slot in one of the padded batches; the continuing runs' comes first.
    batches = [] if not continues.any() else [_batch_of(runs, continues)]
    batches += runs.buckets(~continues, step=ROWS)
    tokens = torch.cat([tokens.flatten() for _, tokens, _ in batches])
    filled = torch.cat([valid.flatten() for _, _, valid in batches])
    slots = torch.empty(batch * length, dtype=torch.int64, device=q.device)
    slots[tokens[filled]] = filled.nonzero().squeeze(1)
    sizes = [valid.numel() for _, _, valid in batches]
    spread = [_Spread.apply(u.flatten(0, 1), slots, len(tokens)).split(sizes) for u in (q, k, v)]
    outputs = []
    for (which, tokens, valid), *parts in zip(batches, *spread, strict=True):
        parts = [u.view(*valid.shape, *u.shape[1:]) for u in parts]
        at, rows = positions.flatten()[tokens], runs.starts[which] // length
        if continues[which[0]]:
            here = KeyValueState(kv.k[rows], kv.v[rows], kv.length[rows])
            out = _continue(*parts, chunk_size, at, here, drop, rows)
        else:
            hidden = _dropkey(drop, q.shape[2], rows, at, at, chunk_size)
            out = causal_attention(*parts, None, hidden)
        outputs.append(out.flatten(0, 1))
    return _Collect.apply(torch.cat(outputs), slots).view(batch, length, *v.shape[2:])


def _batch_of(runs: Segments, select: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some runs as one padded batch, in the form of `Segments.buckets`."""
    which = select.nonzero().squeeze(1)
    offsets = torch.arange(int(runs.lengths[which].max()), device=which.device)
    valid = offsets < runs.lengths[which, None]
    return which, torch.where(valid, runs.starts[which, None] + offsets, 0), valid


class _Spread(torch.autograd.Function):
    """x [R, ...] -> [total, ...] with row i at slots[i] and zeros elsewhere; slots differ."""

    @staticmethod
    def forward(ctx, x, slots, total):
        ctx.save_for_backward(slots)
        return x.new_zeros(total, *x.shape[1:]).index_copy_(0, slots, x)

    @staticmethod
    @backward_pass
    def backward(ctx, grad):
        return grad.index_select(0, *ctx.saved_tensors), None, None


class _Collect(torch.autograd.Function):
    """The transpose of `_Spread`: y [total, ...] -> [R, ...]."""

    @staticmethod
    def forward(ctx, y, slots):
        ctx.save_for_backward(slots)
        ctx.total = len(y)
        return y.index_select(0, slots)

    @staticmethod
    @backward_pass
    def backward(ctx, grad):
        (slots,) = ctx.saved_tensors
        return grad.new_zeros(ctx.total, *grad.shape[1:]).index_copy_(0, slots, grad), None


def _continue(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    positions: Tensor,
    kv: KeyValueState,
    drop: Drop,
    rows: Tensor | None = None,
) -> Tensor:
    """Attention of tokens whose chunk began in an earlier call: cached keys first, then these."""
    batch, slots = kv.k.shape[:2]
    if rows is None:
        rows = torch.arange(batch, device=q.device)
    slot = torch.arange(slots, device=q.device).expand(batch, -1)
    offset = positions[:, :1] % chunk_size
    cached = (slot < offset) & (slot >= offset - kv.length[:, None])
    mask = cached[..., None, None]
    keys = torch.cat([torch.where(mask, kv.k, 0).to(k.dtype), k], dim=1)
    values = torch.cat([torch.where(mask, kv.v, 0).to(v.dtype), v], dim=1)
    visible = None
    if not cached.all():
        visible = torch.cat([cached, torch.ones_like(positions, dtype=torch.bool)], dim=1)
    at = torch.cat([slot, positions % chunk_size], dim=1)
    hidden = _dropkey(drop, q.shape[2], rows, positions, at, chunk_size)
    return causal_attention(q, keys, values, visible, hidden)


def _rows(at: Tensor, batch: int) -> Tensor:
    """The batch row of each chunk of at [B * chunks, size]."""
    return torch.arange(at.shape[0], device=at.device) // (at.shape[0] // batch)


def _dropkey(drop: Drop, heads: int, rows: Tensor, queries: Tensor, keys: Tensor, chunk_size: int):
    """DropKey's mask for blocks of query rows, from positions of queries [n, Q] and keys [n, K]."""
    if drop is None:
        return None
    chunk = queries[:, 0] // chunk_size
    queries, keys = queries % chunk_size, keys % chunk_size

    def hidden(first: int, end: int, end_key: int) -> Tensor:
        return dropped(*drop, rows, chunk, heads, queries[:, first:end], keys[:, :end_key])

    return hidden
