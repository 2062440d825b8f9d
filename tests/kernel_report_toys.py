"""Kernels of known cost for the tests of `make kernels`, one for each thing that it refuses."""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from kernel_report.cases import SHAPES, Case, attention_cases, bytes_of, cases_of, record
from litmegalodon.ops.launch import Config, launch


@triton.jit
def copy_kernel(p_x, p_y, n, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    """y = (x + x + ...) TIMES times read, one exp an element."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.zeros((BLOCK,), tl.float32)
    for _ in range(TIMES):
        b_x += tl.load(p_x + o, mask=o < n, other=0.0).to(tl.float32)
    tl.store(p_y + o, tl.exp(b_x).to(tl.bfloat16), mask=o < n)


@triton.jit
def causal_kernel(p_x, p_y, L, C, PRECISION: tl.constexpr, M: tl.constexpr, Z: tl.constexpr):
    """x [L, Z] times its own earlier rows of the chunk, tile by tile; y [L, Z]."""
    i = tl.program_id(0)
    o_z = tl.arange(0, Z)
    o_m = i * M + tl.arange(0, M)
    b_q = tl.load(p_x + o_m[:, None] * Z + o_z[None, :])
    b_y = tl.zeros((M, Z), tl.float32)
    for j in range(i * M // C * C, (i + 1) * M, M):
        b_k = tl.load(p_x + (j + tl.arange(0, M))[:, None] * Z + o_z[None, :])
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_y += tl.dot(b_s.to(b_k.dtype), b_k, input_precision=PRECISION)
    tl.store(p_y + o_m[:, None] * Z + o_z[None, :], b_y.to(p_y.dtype.element_ty))


@triton.jit
def spilling_kernel(p_x, p_y, N: tl.constexpr):
    """A tile that has to wait in registers, 512 a thread, until its sum is known."""
    o = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    b_x = tl.load(p_x + o).to(tl.float32)
    tl.store(p_y + o, (b_x / tl.sum(b_x)).to(tl.bfloat16))


@triton.jit
def product_kernel(p_x, p_y, K, N: tl.constexpr, W: tl.constexpr):
    """x x^T of x [N, K], K in slices that are loaded ahead into shared memory."""
    o_n, o_w = tl.arange(0, N), tl.arange(0, W)
    b_y = tl.zeros((N, N), tl.float32)
    for k in range(0, K, W):
        b_x = tl.load(p_x + o_n[:, None] * K + (k + o_w)[None, :])
        b_z = tl.load(p_x + o_n[None, :] * K + (k + o_w)[:, None])
        b_y += tl.dot(b_x, b_z)
    tl.store(p_y + o_n[:, None] * N + o_n[None, :], b_y.to(tl.bfloat16))


def _new(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def _case(operator, direction, kernel, grid, arguments, config) -> Case:
    def start():
        launch(kernel, grid, arguments, (config,))
        return ()

    _, launches, host = record(start)
    return Case(operator, direction, "toy", launches, bytes_of(*arguments.values()), host)


def _copy(direction: str, n: int, times: int) -> Case:
    arguments = {"p_x": _new(n), "p_y": _new(n), "n": n, "TIMES": times}
    config = Config({"BLOCK": 256})
    return _case(
        "cema", direction, copy_kernel, lambda t: (triton.cdiv(n, t["BLOCK"]),), arguments, config
    )


def _causal(direction: str, dtype: torch.dtype, precision: str) -> Case:
    x, y = _new(2048, 64, dtype=dtype), _new(2048, 64, dtype=dtype)
    arguments = {"p_x": x, "p_y": y, "L": 2048, "C": 512, "PRECISION": precision, "Z": 64}
    return _case(
        "chunk_attention",
        direction,
        causal_kernel,
        lambda t: (2048 // t["M"],),
        arguments,
        Config({"M": 32}),
    )


def sound(target: str) -> list[Case]:
    """Cases with nothing to complain of."""
    return [_copy("forward", 10_000, 1), _causal("forward", torch.bfloat16, "tf32")]


def faulty(target: str) -> list[Case]:
    """Cases that fail for one reason each."""
    x = _new(128, 128)
    spilling = Config({"N": 128}, num_warps=1)
    x_long = _new(128, 4096)
    large = Config({"N": 128, "W": 64}, num_stages=8)
    arguments = {"p_x": x, "p_y": _new(128, 128)}
    return [
        _copy("forward", 10_000, 4),
        _copy("backward", 10_000, 6),
        _case("timestep_norm", "forward", spilling_kernel, lambda t: (1,), arguments, spilling),
        _case(
            "chunk_attention",
            "forward",
            product_kernel,
            lambda t: (1,),
            {"p_x": x_long, "p_y": x, "K": 4096},
            large,
        ),
        _causal("backward", torch.float32, "ieee"),
    ]


def outside(target: str) -> list[Case]:
    """A kernel that writes behind its tensor's end."""
    arguments = {"p_x": _new(1000), "p_y": _new(999), "n": 1000, "TIMES": 1}
    config = Config({"BLOCK": 256})
    return [_case("cema", "forward", copy_kernel, lambda t: (4,), arguments, config)]


def attention(target: str) -> list[Case]:
    """Attention's kernels at the smallest shape in every dtype, with a cache and without."""
    return attention_cases(SHAPES[0], target)


def smallest(target: str) -> list[Case]:
    """The operators' own kernels at the smallest shape, compiled only."""
    return [replace(case, counted=False) for case in cases_of(SHAPES[0], target)]
