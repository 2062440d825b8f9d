"""What a look at a network tells: norms by kind of parameter, memory lengths, use of the machine.

Every function is called on all processes and gives each of them the figures of the whole network.

Shapes: D channels, N order of the moving average.
"""

import math
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.ops.cema.coefficients import coefficients
from litmegalodon.planning.sizes import step_flops

# The first that a parameter's name matches.
KINDS = {
    "cema": r"(^|\.)c?ema\.",
    "norms": r"norm",
    "embedding": r"embed",
    "attention": r"(^|\.)(mega|self_attn|attn|attention)\.",
    "ffn": r"(^|\.)(nffn|ffn|mlp)\.",
    "head": r"(^|\.)(output|lm_head|head)\.",
    "other": r"",
}
QUANTILES = (0.1, 0.5, 0.9, 0.99)
GIB = 2**30


def kind_of(name: str) -> str:
    """The kind of a parameter, from its name."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))


def squared_norms(
    named: Iterable[tuple[str, Tensor]], world: int, total: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Sum of squares of parameters or gradients by kind.

    Args:
        named: by the parameter's name; DTensors as their own share, others whole.
        world: number of processes.
        total: sums a tensor over all processes.
    """
    groups: dict[tuple[str, int], list[Tensor]] = {}
    for name, tensor in named:
        copies = world
        if isinstance(tensor, DTensor):
            placed = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
            copies = math.prod(size for place, size in placed if isinstance(place, Replicate))
            tensor = tensor.to_local()
        if tensor.numel():
            groups.setdefault((kind_of(name), copies), []).append(tensor.detach())
    kinds = list(KINDS)
    if not groups:
        return {}
    device = next(iter(groups.values()))[0].device
    sums = torch.zeros(len(kinds), dtype=torch.float64, device=device)
    for (kind, copies), tensors in groups.items():
        norms = torch.stack(torch._foreach_norm(tensors)).double()
        sums[kinds.index(kind)] += norms.square().sum() / copies
    return dict(zip(kinds, total(sums).tolist(), strict=True))


class Memory(NamedTuple):
    """What a layer's moving average remembers.

    Attributes:
        half_life: tokens after which half of an input is forgotten, float64 [D * N], on the CPU.
        frequency: turns a token of the oscillation, [D * N]; None of a real moving average.
    """

    half_life: Tensor
    frequency: Tensor | None


def memories(model: nn.Module) -> list[Memory]:
    """The memory of every moving average of a network, in the order of its layers."""
    found = []
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if not {"alpha", "delta", "gamma"} <= set(own):
            continue
        alpha, delta, gamma = (_whole(own[name]) for name in ("alpha", "delta", "gamma"))
        complex_valued = own.get("theta") is not None
        theta = _whole(own["theta"]) if complex_valued else torch.zeros_like(alpha[:, :1])
        if gamma.dim() < 3 or gamma.shape[-1] != 2:
            gamma = gamma.new_zeros(*alpha.shape[:2], 2)
        made = coefficients(alpha, delta, theta, gamma)
        half_life = -math.log(2) / made.log_decay
        frequency = made.angle / (2 * math.pi) if complex_valued else None
        found.append(
            Memory(half_life.flatten(), None if frequency is None else frequency.flatten())
        )
    return found


def quantiles(layers: list[Memory]) -> dict[str, float]:
    """Half-lives and frequencies as figures: quantiles over all layers, and each layer's median."""
    figures = {}
    for name in ("half_life", "frequency"):
        values = [value for layer in layers if (value := getattr(layer, name)) is not None]
        if not values:
            continue
        levels = torch.tensor(QUANTILES, dtype=torch.float64)
        all_of = torch.cat(values)
        for level, value in zip(QUANTILES, _quantile(all_of, levels).tolist(), strict=True):
            figures[f"cema/{name}/p{100 * level:.0f}"] = value
        for number, value in enumerate(values):
            figures[f"cema/{name}_p50/layer_{number}"] = value.median().item()
    return figures


def norm_statistics(state: Any) -> dict[str, Tensor]:
    """What the timestep norms have seen at the end of the rows: root mean square of the groups'
    means, and mean standard deviation, by layer; {} of a network without any.
    """
    layers = getattr(state, "layers", None) or ()
    norms = {f"layer_{i}": getattr(layer, "norm", None) for i, layer in enumerate(layers)}
    norms["final"] = getattr(state, "norm", None)
    figures = {}
    for name, norm in norms.items():
        if (mean := getattr(norm, "mean", None)) is None:
            continue
        figures[f"timestep_norm/mean/{name}"] = mean.detach().double().square().mean().sqrt()
        figures[f"timestep_norm/std/{name}"] = norm.var.detach().double().sqrt().mean()
    return figures


def flops_per_token(model: nn.Module, length: int) -> float:
    """Arithmetic of the model in a training step, three times its forward pass.

    Of a network other than a Megalodon: 6 a parameter outside the embedding (Kaplan et al., 2020,
    arXiv 2001.08361), and attention to the tokens before.
    """
    config = model.config
    if isinstance(config, MegalodonConfig):
        return step_flops(config, length, checkpointing=False)[0]
    sizes = (p.numel() for n, p in model.named_parameters() if kind_of(n) != "embedding")
    return 6 * sum(sizes) + 6 * config.num_layers * config.model_dim * length


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of this process' largest matrix products, the best of a few."""
    size, times = (8192, 6) if device.type == "cuda" else (1024, 6)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_use(device: torch.device) -> dict[str, float]:
    """GiB of this process: in memory now; on a GPU the most that tensors took so far."""
    figures = {}
    # Pages in memory are the second number; Linux has this file.
    if (statm := Path("/proc/self/statm")).exists():
        import resource

        pages = int(statm.read_text().split()[1])
        figures["memory/process_gib"] = pages * resource.getpagesize() / GIB
    if device.type == "cuda":
        figures["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return figures


def _whole(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu()


def _quantile(values: Tensor, levels: Tensor) -> Tensor:
    # torch.quantile refuses more than 16 million values.
    ordered = values.sort().values
    places = (levels * (len(ordered) - 1)).round().long()
    return ordered[places]
