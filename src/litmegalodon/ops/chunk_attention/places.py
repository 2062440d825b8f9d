"""Where the tokens of a call stand in their chunks.

Each row of a batch is one line of *places*: place j < offset is slot j of the incoming cache, place
offset + t is token t of the call, with offset = position mod C.

How far rows are decides the size of the outgoing state, so it is read from the device, which waits
for all that was started there. What a token sees depends on that, the resets and the cache's length
alone, the same in all layers of a model. So a model finds its `Places` once a call and hands them
to every layer.

Shapes: B batch, L length, C chunk, S slots of the cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Places(NamedTuple):
    """What `chunk_attention` takes for a position, with what is known of it.

    Attributes:
        position: int64 [B], tokens before the call.
        begin, end: how far the furthest row is in its chunk before and after the call.
        aligned: whether all rows are equally far.
        bounds: what `bounds` returns, or None where no kernel asks for it.
    """

    position: Tensor
    begin: int
    end: int
    aligned: bool
    bounds: tuple[Tensor, Tensor] | None = None


def locate(
    position: int | Tensor,
    slots: int | None,
    batch: int,
    length: int,
    chunk_size: int,
    device: torch.device,
) -> Places:
    """The places of a call; a number is the position of all rows, a tensor is read.

    Where a tensor has no value to read (meta and fake tensors, tracing), rows are taken to begin at
    a chunk's first token, as in training; a traced program that is then run with others stops with
    an assertion. With a cache torch.compile does not trace this.

    Args:
        slots: S, None where the call is given no cache.

    Raises:
        ValueError: the cache ends before the place at which a row goes on.
    """
    if isinstance(position, int):
        rows = torch.full((batch,), position, dtype=torch.int64, device=device)
        places = Places(rows, position % chunk_size, (position + length) % chunk_size, True)
    else:
        read = _read_untraced if slots else _read
        places = read(position.to(device).expand(batch), length, chunk_size)
    if slots is not None and slots < places.begin:
        raise ValueError(
            f"state holds keys of {slots} tokens where chunk_size={chunk_size} "
            f"needs {places.begin}: it is of a model with another chunk_size"
        )
    return places


def _read(position: Tensor, length: int, chunk_size: int) -> Places:
    offset = position % chunk_size
    if position.is_meta:
        return Places(position, 0, length % chunk_size, True)
    if isinstance(position, FakeTensor) or torch.compiler.is_compiling():
        torch._assert_async(
            (offset == 0).all(),
            "chunk_attention: traced for rows that begin at a chunk boundary, run with others",
        )
        return Places(position, 0, length % chunk_size, True)
    end = (offset + length) % chunk_size
    low, high, end = torch.stack([offset.min(), offset.max(), end.max()]).tolist()
    return Places(position, high, end, low == high)


_read_untraced = torch.compiler.disable(_read)


def bounds(
    position: Tensor,
    known: Tensor | None,
    resets: Tensor | None,
    length: int,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """first, last int32 [B, L]: a token sees places first .. its own; before last its run ends.

    Args:
        known: int64 [B], how many slots of the cache before (position mod C) may be seen; none by
            default.
        resets: bool [B, L].
    """
    offset = position % chunk_size
    place = (offset[:, None] + torch.arange(length, device=position.device)).int()  # B x L
    begin, end = offset.int()[:, None], (offset + length).int()[:, None]
    if known is not None:
        begin = begin - torch.minimum(known, offset).int()[:, None]
    into_chunk = place % chunk_size
    first = torch.maximum(place - into_chunk, begin)
    last = torch.minimum(place - into_chunk + chunk_size, end)
    if resets is not None:
        first = torch.maximum(first, torch.where(resets, place, 0).cummax(1).values)
        # The next document begins at the first reset after a token.
        following = torch.cat([torch.where(resets, place, end)[:, 1:], end], dim=1)
        last = torch.minimum(last, following.flip(1).cummin(1).values.flip(1))
    return first.contiguous(), last.contiguous()
