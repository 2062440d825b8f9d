"""Which launches the report is about: each operator, both ways, at the sizes of three models.

Activations are tensors without memory. What decides how far a kernel goes (positions, where
documents begin) is real, so that kernels can be counted: one document, no tokens before it.

Shapes: B = 1 batch, L length, D model width, G groups, N CEMA order, H heads, z and e head sizes of
queries and values, C chunk, F width of the feed-forward part.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from litmegalodon.ops.launch import Launch, recording


@dataclass(frozen=True)
class Shape:
    name: str
    length: int
    dim: int
    z_dim: int
    value_dim: int
    ffn_dim: int
    heads: int
    chunk: int
    groups: int
    order: int = 16

    @property
    def matrix_flop(self) -> int:
        """Arithmetic of a block's linear layers, forward; the gated feed-forward part has three."""
        d, v = self.dim, self.value_dim
        weights = d * self.z_dim + 2 * d * v + d * d + v * d + 3 * d * self.ffn_dim
        return 2 * self.length * weights


SHAPES = (
    Shape("200M", 8192, 1024, 256, 2048, 2048, 1, 2048, 32),
    Shape("1.3B", 8192, 2048, 512, 4096, 4096, 2, 2048, 32),
    Shape("7B", 32768, 4096, 1024, 8192, 8192, 4, 4096, 64),
)


@dataclass(frozen=True)
class Case:
    """One pass of an operator.

    Attributes:
        least: bytes of what the pass takes and gives, each once; nothing it keeps in between.
        host_bytes: bytes that operations of torch around the kernels read and write.
        counted: whether its programs are counted, or it is compiled only.
        tensor_cores: whether its products are of a dtype that every target's tensor cores take.
    """

    operator: str
    direction: str
    shape: str
    launches: list[Launch]
    least: int
    host_bytes: int
    counted: bool = True
    tensor_cores: bool = True


def cases(target: str) -> list[Case]:
    """All passes of all operators, with the configurations chosen for a target."""
    every = [case for shape in SHAPES for case in cases_of(shape, target)]
    return [*every, *attention_cases(SHAPES[-1], target)]


def cases_of(shape: Shape, target: str) -> list[Case]:
    """The passes at one shape."""
    from litmegalodon.ops.chunk_attention.tiles import compiling_for

    with compiling_for(target):
        return [*_cema(shape), *_timestep_norm(shape), *_attention(shape, torch.bfloat16, False)]


def attention_cases(shape: Shape, target: str) -> list[Case]:
    """Attention's other kernels, compiled only: other dtypes, DropKey and a cache."""
    from litmegalodon.ops.chunk_attention.tiles import compiling_for

    with compiling_for(target):
        found = _attention(shape, torch.bfloat16, True)
        for dtype in (torch.float32, torch.float64):
            for dropkey_and_cache in (False, True):
                found += _attention(shape, dtype, dropkey_and_cache)
    return [replace(case, counted=False) for case in found]


def record(start: Callable[[], Iterable[Tensor]]) -> tuple[tuple, list[Launch], int]:
    """What a pass returns, the launches it makes and the bytes that torch moves beside them."""
    with recording() as launches, _Host() as host, torch.no_grad():
        returned = start()
    return tuple(returned), list(launches), host.bytes


def bytes_of(*values) -> int:
    """Bytes of the tensors among values, and of those in tuples of them."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, tuple | list):
            total += bytes_of(*value)
    return total


class _Host(TorchDispatchMode):
    """Adds up what operations of torch read and write; views and new memory are free.

    An operation between real tensors and ones without memory gives one without.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        args, kwargs = list(args), kwargs or {}
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        if any(v.is_meta for v in tensors) and "device" not in kwargs:
            args, kwargs = tree_map_only(Tensor, lambda v: v.to("meta"), (args, kwargs))
        returned = func(*args, **kwargs)
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not view and "empty" not in func._schema.name:
            self.bytes += bytes_of(*tensors, *tree_leaves(returned))
        return returned


def _new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _resets(length: int) -> Tensor:
    return torch.zeros(1, length, dtype=torch.bool)


def _cema(shape: Shape) -> list[Case]:
    from litmegalodon.ops.cema.coefficients import coefficients
    from litmegalodon.ops.cema.triton import backward_kernels, forward_kernels

    d, n = shape.dim, shape.order
    x, dy = _new(1, shape.length, d), _new(1, shape.length, d)
    sizes = (d, n, 1), (d, n, 1), (d, 1, 1), (d, n, 2), (d, 1)
    *parameters, omega = (_new(*size, dtype=torch.float32) for size in sizes)
    state, dh = (_new(1, d, n, 2, dtype=torch.float32) for _ in range(2))
    resets = _resets(shape.length)
    given = (x, *parameters, omega, state, resets)

    def forward():
        return forward_kernels(x, coefficients(*parameters), omega, state, resets)

    (y, h, *saved), launches, host = record(forward)
    least = bytes_of(given, y, h)
    result = [Case("cema", "forward", shape.name, launches, least, host)]

    def backward():
        c = coefficients(*parameters)
        return backward_kernels(dy, dh, x, c, omega, state, resets, h, *saved)

    _, launches, host = record(backward)
    # Gradients of all that was given but the resets.
    least = bytes_of(given, dy, dh) + bytes_of(given[:-1])
    return [*result, Case("cema", "backward", shape.name, launches, least, host)]


def _timestep_norm(shape: Shape) -> list[Case]:
    from litmegalodon.ops.timestep_norm.state import NormState
    from litmegalodon.ops.timestep_norm.triton import backward_kernels, forward_kernels

    d, groups, eps = shape.dim, shape.groups, 1e-5
    x, dy = _new(1, shape.length, d), _new(1, shape.length, d)
    weight, bias = (_new(d, dtype=torch.float32) for _ in range(2))
    mean, var, d_mean, d_var = (_new(1, groups, dtype=torch.float64) for _ in range(4))
    state = NormState(_new(1, dtype=torch.int64), mean, var)
    resets = _resets(shape.length)
    given = (x, weight, bias, state, resets)

    def forward():
        return forward_kernels(x, weight, bias, groups, eps, state, resets)

    (y, last, *saved), launches, host = record(forward)
    least = bytes_of(given, y, last)
    result = [Case("timestep_norm", "forward", shape.name, launches, least, host)]

    def backward():
        return backward_kernels(dy, d_mean, d_var, x, weight, groups, eps, resets, *saved)

    _, launches, host = record(backward)
    grads = (x, weight, bias, mean, var)
    least = bytes_of(x, weight, state, resets, dy, d_mean, d_var, grads)
    return [*result, Case("timestep_norm", "backward", shape.name, launches, least, host)]


def _attention(shape: Shape, dtype: torch.dtype, dropkey_and_cache: bool) -> list[Case]:
    from litmegalodon.ops.chunk_attention.places import bounds
    from litmegalodon.ops.chunk_attention.triton import (
        Settings,
        attention_backward,
        attention_forward,
    )

    length, heads = shape.length, shape.heads
    z, e = shape.z_dim // heads, shape.value_dim // heads
    q, k = (_new(1, length, heads, z, dtype=dtype) for _ in range(2))
    v, d_out = (_new(1, length, heads, e, dtype=dtype) for _ in range(2))
    slots = shape.chunk if dropkey_and_cache else 0
    k_cache, v_cache = (_new(1, slots, heads, n, dtype=dtype) for n in (z, e))
    position = known = torch.zeros(1, dtype=torch.int64)
    resets = _resets(length)
    # A model finds them once for all layers.
    places = position, *bounds(position, known, resets, length, shape.chunk)
    settings = Settings(shape.chunk, 10_000.0, 0x1234567, 2**28, dropkey_and_cache)
    given = (q, k, v, k_cache, v_cache)
    name = shape.name
    if dtype != torch.bfloat16:
        name += f", {dtype}".replace("torch.", "")
    if dropkey_and_cache:
        name += ", DropKey and cache"

    def forward():
        return attention_forward(*given, *places, settings)

    def case(direction, launches, least, host):
        tensor_cores = dtype == torch.bfloat16
        return Case(
            "chunk_attention", direction, name, launches, least, host, tensor_cores=tensor_cores
        )

    (out, rotated_q, rotated_k, lse), launches, host = record(forward)
    least = bytes_of(given, resets, out)
    result = [case("forward", launches, least, host)]

    def backward():
        kept = (out, rotated_q, rotated_k, v, k_cache, v_cache, lse)
        return attention_backward(d_out, None, *kept, *places, settings)

    _, launches, host = record(backward)
    least = bytes_of(given, resets, d_out) + bytes_of(given)
    return [*result, case("backward", launches, least, host)]
