"""Chunk attention as its definition says it, one query after another."""

import torch
from torch import Tensor

from litmegalodon.ops.chunk_attention.dropkey import dropped
from litmegalodon.ops.chunk_attention.places import Places
from litmegalodon.ops.chunk_attention.rope import rotate, rotation
from litmegalodon.ops.chunk_attention.state import KeyValueState
from litmegalodon.ops.dispatch import compute_dtype


def chunk_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    rope_base: float,
    places: Places,
    kv: KeyValueState,
    resets: Tensor | None,
    drop: tuple[float, int] | None,
) -> tuple[Tensor, KeyValueState]:
    """See `litmegalodon.ops.chunk_attention`."""
    dtype = compute_dtype(v)
    position, length = places.position, q.shape[1]
    positions = position[:, None] + torch.arange(length, device=q.device)
    factors = rotation(positions % chunk_size, q.shape[-1], chunk_size, rope_base, q)
    q, k = rotate(q, factors), rotate(k, factors)
    outputs, ends = [], []
    for b, start in enumerate(position.tolist()):
        offset, visible = start % chunk_size, int(kv.length[b])
        keys = list(kv.k[b, offset - visible : offset].unbind(0))
        values = list(kv.v[b, offset - visible : offset].unbind(0))
        out = []
        for t in range(length):
            place = (start + t) % chunk_size
            if place == 0 or (resets is not None and resets[b, t]):
                keys, values = [], []
            keys.append(k[b, t])
            values.append(v[b, t])
            # K x H x z -> H x K
            score = (torch.stack(keys).to(dtype) * q[b, t].to(dtype)).sum(-1).transpose(0, 1)
            if drop is not None:
                at = torch.tensor([[place]], device=q.device)
                seen = torch.arange(place + 1 - len(keys), place + 1, device=q.device)[None]
                row, chunk = (
                    torch.tensor([u], device=q.device) for u in (b, (start + t) // chunk_size)
                )
                hide = dropped(*drop, row, chunk, q.shape[2], at, seen)[0, :, 0]
                score = score.masked_fill(hide, -torch.inf)
            weight = score.softmax(-1).nan_to_num(0.0) if drop is not None else score.softmax(-1)
            out.append(torch.einsum("hk,khe->he", weight, torch.stack(values).to(dtype)))
        outputs.append(torch.stack(out))
        ends.append((keys, values) if (start + length) % chunk_size else ([], []))
    return torch.stack(outputs).to(v.dtype), _state(ends, position + length, chunk_size, k, v)


def _state(ends, position: Tensor, chunk_size: int, k: Tensor, v: Tensor) -> KeyValueState:
    """Put each row's remaining keys and values into the slots before its offset."""
    offsets = (position % chunk_size).tolist()
    sides = []
    for side, like in ((0, k), (1, v)):
        rows = []
        for end, offset in zip(ends, offsets, strict=True):
            held = end[side]
            before = like.new_zeros(offset - len(held), *like.shape[2:])
            after = like.new_zeros(max(offsets) - offset, *like.shape[2:])
            middle = torch.stack(held) if held else like[0, :0]
            rows.append(torch.cat([before, middle, after]))
        sides.append(torch.stack(rows))
    length = torch.tensor([len(end[0]) for end in ends], device=k.device)
    return KeyValueState(*sides, length)
