"""How many bytes a forward pass saves for its backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Saved:
    """Tensors saved, each storage once; parameters apart."""

    def __init__(self, model: nn.Module):
        self.model = model
        # The tensor keeps its storage from being used for another one.
        self._seen: dict[int, tuple[int, Tensor]] = {}

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self._seen.values())

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Sharding gathers parameters anew: which ones are there has to be asked each time.
        weights = [p for p in self.model.parameters() if not isinstance(p, DTensor)]
        if storage.data_ptr() not in {p.untyped_storage().data_ptr() for p in weights}:
            self._seen.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))
        return tensor


@contextmanager
def counting(model: nn.Module) -> Iterator[Saved]:
    """Count what is saved meanwhile."""
    saved = Saved(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
        yield saved
