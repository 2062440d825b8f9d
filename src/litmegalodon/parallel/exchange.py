"""The exchange of chunk parallelism on torch.distributed."""

from collections.abc import Callable

from torch import Tensor
from torch.distributed._functional_collectives import all_gather_single_autograd
from torch.distributed.device_mesh import DeviceMesh


class ChunkGroup:
    """The processes that read the same rows, each its own stretch; see `models.span.Exchange`.

    Args:
        mesh: the mesh's `chunk` axis, its processes in the order of their stretches.
    """

    def __init__(self, mesh: DeviceMesh):
        self.rank, self.size = mesh.get_local_rank(), mesh.size()
        self._group = mesh.get_group()

    def start(self, local: Tensor) -> Callable[[], Tensor]:
        """Start an all-gather; its gradient is a reduce-scatter that sums."""
        gathered = all_gather_single_autograd(local.contiguous()[None], 0, self._group)
        # torch.compile follows the call to a tensor that it has waited for already.
        return lambda: gathered.wait() if hasattr(gathered, "wait") else gathered
