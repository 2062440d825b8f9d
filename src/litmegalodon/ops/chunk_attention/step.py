"""Chunk attention of a single token a row, without gradients; all rows equally far in their chunks.

A chunk's keys and values are appended to buffers, not copied for every token. A state remains a
value: the slots that it sees are never written again, and where two texts go on from one state, the
first has the buffers and the other copies.

Shapes: B batch, H heads, C chunk, n tokens of the chunk before this one.
"""

import torch
from torch import Tensor

from litmegalodon.ops.chunk_attention.places import Places
from litmegalodon.ops.chunk_attention.rope import rotate, rotation
from litmegalodon.ops.chunk_attention.state import KeyValueState
from litmegalodon.ops.dispatch import compute_dtype

# Slots of a first buffer; it doubles.
SLOTS = 64


class _Room:
    """Buffers [B, H, slots, *] of keys and values, each slot of which is written once."""

    def __init__(self, kv: KeyValueState, like: tuple[Tensor, Tensor], slots: int) -> None:
        (batch, known), heads = kv.k.shape[:2], kv.k.shape[2]
        # Not tensors of inference mode, which could not be written outside of it.
        with torch.inference_mode(False):
            self.k, self.v = (u.new_empty(batch, heads, slots, u.shape[-1]) for u in like)
        self.slots = slots
        self._taken: dict[int, object] = {}
        self.k[:, :, :known] = kv.k.transpose(1, 2)
        self.v[:, :, :known] = kv.v.transpose(1, 2)

    def take(self, slot: int) -> bool:
        """Whether a slot is the caller's to write; of several threads for one."""
        claim = object()
        return slot < self.slots and self._taken.setdefault(slot, claim) is claim


class _RoomyState(KeyValueState):
    """Keys and values that are the first slots of buffers, `room`."""


def chunk_attention_step(
    qk: Tensor, v: Tensor, chunk_size: int, rope_base: float, places: Places, kv: KeyValueState
) -> tuple[Tensor, KeyValueState]:
    """One token's attention over those before it in its chunk.

    Args:
        qk: [B, 2, H, z], query and key, not rotated.
        v: [B, H, e].
        chunk_size, rope_base: as in `litmegalodon.ops.chunk_attention`.
        places: where the tokens stand; aligned.
        kv: keys and values of the chunk, n of each at least.

    Returns:
        out [B, H, e] in v's dtype, and the keys and values with this token's.
    """
    n, wide = places.begin, compute_dtype(v)
    place = places.position[:1, None] % chunk_size
    factors = rotation(place, qk.shape[-1], chunk_size, rope_base, qk)
    q, k = rotate(qk, factors).unbind(1)  # B x H x z
    room = getattr(kv, "room", None)
    if room is None or kv.k.shape[1] != n or not room.take(n):
        first = KeyValueState(kv.k[:, :n], kv.v[:, :n], kv.length)
        room = _Room(first, (k, v), min(chunk_size, max(SLOTS, 2 * n)))
        room.take(n)
    room.k[:, :, n], room.v[:, :, n] = k, v
    keys, values = (u.flatten(0, 1)[:, : n + 1] for u in (room.k, room.v))  # BH x n+1 x *
    score = torch.bmm(q.to(wide).flatten(0, 1)[:, None], keys.to(wide).mT)  # BH x 1 x n+1
    if (kv.length < n).any():
        # A document began inside the chunk.
        seen = torch.arange(n + 1, device=v.device) >= n - kv.length[:, None]
        score.unflatten(0, (-1, v.shape[1])).masked_fill_(~seen[:, None, None], -torch.inf)
    weight = torch.softmax(score, dim=-1).to(v.dtype)
    out = torch.bmm(weight, values).view(v.shape)
    if n + 1 == chunk_size:
        return out, KeyValueState.fresh(k[:, None], v[:, None])
    length = (kv.length + 1).clamp_(max=n + 1)
    state = _RoomyState(*(u[:, :, : n + 1].transpose(1, 2) for u in (room.k, room.v)), length)
    state.room = room
    return out, state
