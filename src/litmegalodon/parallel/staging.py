"""A copy of a training state in CPU memory, which stays while training goes on."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_unflatten


class Staging:
    """CPU memory for one copy of a state, kept from one copy to the next; pinned beside a GPU."""

    def __init__(self) -> None:
        self._buffers: list[Tensor | None] = []

    @torch.no_grad()
    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copy a state over the one copied before.

        Args:
            state: nested dictionaries and lists; what is no tensor in them is kept as it is.

        Returns:
            The same with tensors that share no memory with it: of a sharded one this process' part.
        """
        leaves, form = tree_flatten(state)
        old = self._buffers + [None] * (len(leaves) - len(self._buffers))
        copies: list[Any] = []
        self._buffers, on_gpu = [], False
        for leaf, buffer in zip(leaves, old, strict=False):
            local = leaf.to_local() if isinstance(leaf, DTensor) else leaf
            copied = _copied(local, buffer) if isinstance(local, Tensor) else None
            on_gpu |= copied is not None and local.is_cuda
            self._buffers.append(copied)
            if isinstance(leaf, DTensor):
                # Of the same mesh, though that may be one of GPUs: only the part itself is here.
                copies.append(DTensor(copied, leaf._spec, requires_grad=False))
            else:
                copies.append(leaf if copied is None else copied)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return tree_unflatten(copies, form)


def size_in_bytes(state: dict[str, Any]) -> int:
    """Bytes of a state's tensors over all processes, copies on several of them counted once."""
    leaves, _ = tree_flatten(state)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def _copied(value: Tensor, buffer: Tensor | None) -> Tensor:
    fits = buffer is not None and buffer.shape == value.shape and buffer.dtype == value.dtype
    if not fits:
        # An empty part of a shard can't be pinned.
        pinned = value.is_cuda and value.numel() > 0
        buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
    assert buffer is not None
    return buffer.copy_(value, non_blocking=value.is_cuda)
