"""Model-parallel shards of the reference put together.

Its layers are split as Megatron's are (fairscale): matrices whose outputs are shared among the
ranks by rows, with their biases; matrices whose inputs are shared by columns, the embedding by
features, the output matrix with it; the per-channel parameters of CEMA and TimestepNorm by
channels; queries' and keys' affine by heads. What is applied after activations were gathered is on
every rank whole.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

_WHOLE = re.compile(r"rope\.freqs|.*\.(prior_count|rmsnorm\.weight|nffn\.norm\.\w+|nffn\.alpha)")
_BY_ROWS = re.compile(
    r".*\.(w[vzr]|wh1|fc[13])\.(weight|bias)|.*\.cema\.\w+|.*\.(timenorm|final_norm)\.\w+"
)
_BY_COLUMNS = re.compile(
    r"embed\.weight|output\.output\.weight|.*\.(wh2|fc2)\.weight|.*\.mega\.(gamma|beta)"
)


def merge_shards(shards: Sequence[dict[str, Tensor]]) -> tuple[dict[str, Tensor], list[str]]:
    """One state dict from those of all model-parallel ranks, in their order.

    Returns:
        the whole tensors, and the names of those that every rank has whole and that differ between
        ranks, of which the first rank's are taken.

    Raises:
        ValueError: names or shapes differ between shards, or a name is not the reference's.
    """
    first = shards[0]
    for rank, shard in enumerate(shards):
        if differing := sorted(first.keys() ^ shard.keys()):
            raise ValueError(f"shard {rank} has other tensors than shard 0, as {differing[0]}")
    merged, unequal = {}, []
    for name in first:
        parts = [shard[name] for shard in shards]
        axis = split_axis(name)
        if len({part.dim() for part in parts}) > 1 or len({part.shape for part in parts}) > 1:
            raise ValueError(f"{name} has other shapes in other shards")
        if axis is not None and len(parts) > 1:
            if parts[0].dim() <= axis:
                raise ValueError(f"{name} has shape {tuple(parts[0].shape)}, which no shard's has")
            merged[name] = torch.cat(parts, dim=axis)
            continue
        merged[name] = parts[0]
        if not all(torch.equal(parts[0], part) for part in parts[1:]):
            unequal.append(name)
    return merged, unequal


def split_axis(name: str) -> int | None:
    """The axis on which the reference's ranks share a tensor, None where each has all of it.

    Raises:
        ValueError: the reference has no tensor of this name.
    """
    if _WHOLE.fullmatch(name):
        return None
    if _BY_COLUMNS.fullmatch(name):
        return 1
    if _BY_ROWS.fullmatch(name):
        return 0
    raise ValueError(f"{name}: the reference has no tensor of this name")
