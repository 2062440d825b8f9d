"""What a model that is trained on lanes remembers between two batches.

Rows of lanes are whole chunks, so no keys are carried: the memory is the statistics of the norms
and CEMA's state, of the same size for every batch. It is part of the module's state_dict, sharded
by rows, so that a checkpoint holds that of all processes and is loaded by any number of them.

Shapes: b rows of a batch on this process.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from litmegalodon.models import MegalodonConfig, MegalodonState

# Keys of an open chunk, which lanes never have at the end of a row.
KEYS = ("k", "v", "length")


class LaneMemory(nn.Module):
    """The state after the last batch of this process' b rows; at first that of having read nothing.

    `shard` makes of a tensor of this process' rows one of all processes' rows.
    """

    def __init__(
        self,
        config: MegalodonConfig,
        rows: int,
        device: torch.device,
        shard: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.shard = shard
        self._fresh = MegalodonState.fresh(config, rows, device=device)
        self._names = [n for n in self._fresh.tensors() if n.rpartition(".")[2] not in KEYS]
        for name in self._names:
            self.register_buffer(_buffer(name), None)
        self.keep(self._fresh)

    def state(self) -> MegalodonState:
        """The memory, for the next batch's forward pass."""
        named = self._fresh.tensors()
        kept = {name: getattr(self, _buffer(name)).to_local() for name in self._names}
        return MegalodonState.from_tensors(named | kept)

    def keep(self, state: MegalodonState) -> None:
        """Remember the state after a batch, cut from the graph that made it.

        ValueError if the batch did not end with a chunk.
        """
        named = state.tensors()
        if named["layers.0.k"].shape[1]:
            raise ValueError("rows of lanes must be whole chunks: the batch left one open")
        for name in self._names:
            # Replaced, not overwritten: the backward pass still needs the old one.
            setattr(self, _buffer(name), self.shard(named[name].detach()))

    def mend(self) -> None:
        """Make rows whose memory is not finite those of having read nothing; no other row changes.

        Their documents are read on without their beginnings.
        """
        kept, fresh = self.state().tensors(), self._fresh.tensors()
        rows = [kept[name].flatten(1) for name in self._names if kept[name].dim() > 1]
        # [b, 1], of all layers and statistics
        sound = torch.cat([row.isfinite().all(1, keepdim=True) for row in rows], 1).all(1)
        for name in self._names:
            shape = (-1,) + (1,) * (kept[name].dim() - 1)
            mended = torch.where(sound.view(shape), kept[name], fresh[name])
            setattr(self, _buffer(name), self.shard(mended))


def _buffer(name: str) -> str:
    return name.replace(".", "_")
