"""All that a MEGALODON remembers of what it has read: of a fixed size, however much that was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.ops import KeyValueState, NormState

# How the names of tensors end that have a slot for each token of the open chunk.
KEYS = (".k", ".v")


class LayerState(NamedTuple):
    """A block's memory: norm statistics, CEMA's h real [B, D, N, 2], the current chunk's keys."""

    norm: NormState
    h: Tensor
    kv: KeyValueState


@dataclass(frozen=True)
class MegalodonState:
    """The model's memory, a value that goes into `forward` and comes out of it.

    Attributes:
        position: int64 [B], tokens read so far; it places the next token on the grid of chunks.
        layers: one LayerState a block.
        norm: statistics of the final norm.
    """

    position: Tensor
    layers: tuple[LayerState, ...]
    norm: NormState

    @classmethod
    def fresh(
        cls,
        config: MegalodonConfig,
        batch: int,
        position: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> "MegalodonState":
        """The state of a model that has read nothing, its next token standing at `position`."""
        heads = config.num_heads
        offset = position % config.attention_chunk

        def layer() -> LayerState:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            h = torch.zeros(batch, config.model_dim, config.cema_ndim, 2, dtype=wide, device=device)
            k, v = (
                torch.zeros(batch, offset, heads, size // heads, dtype=dtype, device=device)
                for size in (config.z_dim, config.value_dim)
            )
            length = torch.zeros(batch, dtype=torch.int64, device=device)
            norm = NormState.fresh(batch, config.norm_num_groups, device)
            return LayerState(norm, h, KeyValueState(k, v, length))

        return cls(
            torch.full((batch,), position, dtype=torch.int64, device=device),
            tuple(layer() for _ in range(config.num_layers)),
            NormState.fresh(batch, config.norm_num_groups, device),
        )

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.position.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor: position, layers.i.{count,mean,var,h,k,v,length}, out.{count,mean,var}."""
        named = {"position": self.position}
        for i, layer in enumerate(self.layers):
            parts = layer.norm._asdict() | {"h": layer.h} | layer.kv._asdict()
            named |= {f"layers.{i}.{name}": value for name, value in parts.items()}
        return named | {f"out.{name}": value for name, value in self.norm._asdict().items()}

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> "MegalodonState":
        """The inverse of `tensors`.

        Raises:
            ValueError: a tensor is missing.
        """
        try:
            layers: list[LayerState] = []
            while f"layers.{len(layers)}.h" in named:
                part = f"layers.{len(layers)}."
                layers.append(
                    LayerState(
                        NormState(*(named[part + name] for name in NormState._fields)),
                        named[part + "h"],
                        KeyValueState(*(named[part + name] for name in KeyValueState._fields)),
                    )
                )
            norm = NormState(*(named[f"out.{name}"] for name in NormState._fields))
            return cls(named["position"], tuple(layers), norm)
        except KeyError as missing:
            raise ValueError(f"state: tensor {missing} is missing") from None

    def map(self, change: Callable[[Tensor], Tensor]) -> "MegalodonState":
        """The state with every tensor replaced by change(tensor)."""
        return self.from_tensors({name: change(value) for name, value in self.tensors().items()})

    def detach(self) -> "MegalodonState":
        """The same values, cut from the graph that made them."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> "MegalodonState":
        """The same values on another device."""
        return self.map(lambda value: value.to(device))

    def select(self, rows: Tensor | list[int]) -> "MegalodonState":
        """The state of some rows (int64 indices, repeats allowed)."""
        index = torch.as_tensor(rows, device=self.position.device)
        return self.map(lambda value: value[index])

    def row(self, index: int, chunk_size: int) -> "MegalodonState":
        """The state of one row as if it had always been alone: without room for others' keys."""
        state = self.select([index])
        slots = int(state.position[0]) % chunk_size
        cut = {n: u[:, :slots] for n, u in state.tensors().items() if n.endswith(KEYS)}
        return self.from_tensors(state.tensors() | cut)

    @classmethod
    def join(cls, states: Sequence["MegalodonState"]) -> "MegalodonState":
        """The rows of several states of one model as one batch, wherever each of them stands."""
        named = [state.tensors() for state in states]
        slots = max(state.layers[0].kv.k.shape[1] for state in states)

        def joined(name: str) -> Tensor:
            parts = [tensors[name] for tensors in named]
            if name.endswith(KEYS):
                # Slots past a row's own place hold zeros.
                parts = [pad(u, (0, 0, 0, 0, 0, slots - u.shape[1])) for u in parts]
            return torch.cat(parts)

        return cls.from_tensors({name: joined(name) for name in named[0]})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        save_file({k: v.detach().cpu().contiguous() for k, v in self.tensors().items()}, path)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "MegalodonState":
        """Read a file of `save`.

        Raises:
            ValueError: the file is not a whole safetensors file, or not of a state.
        """
        try:
            return cls.from_tensors(load_file(path, device=device))
        except SafetensorError as error:
            raise ValueError(f"state={path}: not a readable safetensors file ({error})") from None
