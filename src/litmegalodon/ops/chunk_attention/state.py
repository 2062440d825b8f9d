"""What attention remembers: the keys and values of the chunk that is not yet full."""

from typing import NamedTuple

import torch
from torch import Tensor

from litmegalodon.ops.chunk_attention.places import Places


class KeyValueState(NamedTuple):
    """Rotated keys [B, S, H, z] and values [B, S, H, e] of the current chunk, by place in it.

    S is the largest (position mod C) of the rows, not C: training mostly ends on a chunk boundary,
    where S = 0, and at 7B full-size buffers would be 2.4 GiB of zeros a sequence. length int64 [B]
    is how many slots before (position mod C) a row may see: fewer than that where a document began
    inside the chunk. The others hold zeros.
    """

    k: Tensor
    v: Tensor
    length: Tensor

    @classmethod
    def fresh(cls, k: Tensor, v: Tensor) -> "KeyValueState":
        """The empty state for keys and values shaped like k [B, L, H, z] and v [B, L, H, e]."""
        length = torch.zeros(k.shape[0], dtype=torch.int64, device=k.device)
        return cls(k[:, :0], v[:, :0], length)


def advance(
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    places: Places,
    kv: KeyValueState,
    resets: Tensor | None,
) -> KeyValueState:
    """The state after a call.

    Args:
        k, v: [B, L, H, *], the call's rotated keys and its values.
        places, kv, resets: what the call began with.
    """
    length, position, slots = k.shape[1], places.position, places.end
    offset, end = position % chunk_size, (position + length) % chunk_size
    known = kv.length + length
    if resets is not None:
        since = torch.arange(length, 0, -1, device=k.device)
        known = torch.where(resets.any(1), torch.where(resets, since, length).amin(1), known)
    visible = torch.minimum(end, known)
    if places.aligned and length >= slots and (resets is None or slots == 0):
        # Clones, so that a small state does not keep a long call's keys alive.
        return KeyValueState(
            k[:, length - slots :].clone(), v[:, length - slots :].clone(), visible
        )
    # Slot i of a row holds its token i - end + L of this call, or a slot of the cache where that is
    # negative. No token before the last `slots` is needed.
    skipped = max(length - slots, 0)
    slot = torch.arange(slots, device=k.device)
    token = slot - end[:, None] + length
    source = torch.where(token >= 0, kv.k.shape[1] + token - skipped, token + offset[:, None])
    held = (slot < end[:, None]) & (slot >= (end - visible)[:, None])
    source = torch.where(held, source, 0)
    sides = []
    for cached, new in ((kv.k, k), (kv.v, v)):
        both = torch.cat([cached.to(new.dtype), new[:, skipped:]], dim=1)
        row = torch.arange(both.shape[0], device=k.device)[:, None]
        sides.append(torch.where(held[..., None, None], both[row, source], 0))
    return KeyValueState(*sides, visible)
