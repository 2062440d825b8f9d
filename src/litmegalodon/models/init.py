"""How every parameter starts.

Each tensor is drawn whole, on the CPU, from a generator keyed by (seed, name): the same weights
come out on any device and, sharded, on any mesh.

Source: released reference (the paper gives none).
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from litmegalodon.models.config import MegalodonConfig

Draw = Callable[[str, tuple[int, ...]], Tensor | None]


def initialise(model: nn.Module, config: MegalodonConfig, seed: int) -> None:
    """Fill the parameters of a Megalodon in place; see `fill`."""
    fill(model, lambda name, shape: initial_value(name, shape, config, seed))


def fill(model: nn.Module, draw: Draw) -> None:
    """Fill a model's parameters in place, on any mesh with the same numbers.

    Args:
        draw: a parameter's starting value in float32 from its name and whole shape; None where
            memory is left as it is.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = draw(name, tuple(parameter.shape))
            if value is None:
                continue
            value = value.to(device=parameter.device, dtype=parameter.dtype)
            if isinstance(parameter, DTensor):
                # Every rank has drawn the whole tensor: keep a slice, send nothing.
                value = distribute_tensor(
                    value, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            parameter.copy_(value)


def initial_value(
    name: str, shape: tuple[int, ...], config: MegalodonConfig, seed: int
) -> Tensor | None:
    """A Megalodon's parameter at its start, in float32; None where init_mode leaves it as it is."""
    out, generator = torch.zeros(shape), generator_of(seed, name)
    module, _, kind = name.rpartition(".")
    if module in ("embed", "output.output"):
        return _truncated(out, 1 / math.sqrt(config.model_dim), 3.0, generator)
    if module.endswith(".cema"):
        return _cema(kind, out, generator)
    if name.endswith(".nffn.alpha"):
        return out.fill_(0.1 * 0.5 ** int(name.split(".")[1]))
    if kind != "weight" or out.dim() != 2:
        # Norms, biases and the affine of queries and keys: zero, weights being stored minus one.
        return out
    return _matrix(out, config.init_mode, generator)


def generator_of(seed: int, name: str) -> torch.Generator:
    """What a parameter is drawn from: another one for every seed and name."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def _truncated(out: Tensor, std: float, at: float, generator: torch.Generator) -> Tensor:
    """Normal of `std`, cut at `at` standard deviations."""
    return nn.init.trunc_normal_(out, 0.0, std, -at * std, at * std, generator)


def _cema(kind: str, out: Tensor, generator: torch.Generator) -> Tensor:
    if kind in ("alpha", "delta"):
        return out.normal_(0.0, 0.2, generator=generator)
    if kind == "theta":
        # Frequencies 1/D to almost 1, log-uniform, in random order over the channels.
        dim = out.shape[0]
        power = torch.arange(1, dim + 1, dtype=torch.float64) / dim
        frequency = dim**-power
        order = torch.randperm(dim, generator=generator)
        return torch.logit(frequency)[order].float().view_as(out)
    if kind == "gamma":
        out[..., 0].normal_(generator=generator)
        return out
    return nn.init.trunc_normal_(out, 0.0, 0.25, -1.0, 1.0, generator)


def _matrix(out: Tensor, mode: str, generator: torch.Generator) -> Tensor | None:
    if mode == "he":
        # kaiming_normal with a = sqrt(5), so 1 / sqrt(3 fan_in), not the usual sqrt(2 / fan_in)
        return out.normal_(0.0, 1 / math.sqrt(3 * out.shape[1]), generator=generator)
    if mode == "bert":
        return out.normal_(0.0, 0.02, generator=generator)
    if mode == "xavier":
        return nn.init.xavier_uniform_(out, generator=generator)
    if mode == "gaussian":
        return _truncated(out, 1.0, 3.0, generator)
    return None
