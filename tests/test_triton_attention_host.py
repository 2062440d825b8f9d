"""What surrounds the Triton kernels of chunk attention: their list, registration, refusals."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from golden_data import assert_equal
from hard import draws, random_qkv
from litmegalodon.ops import chunk_attention

pytest.importorskip("triton", reason="needs Triton")
from litmegalodon.ops.chunk_attention import bounds, passes, tiles
from litmegalodon.ops.chunk_attention import triton as form
from litmegalodon.ops.launch import INTERPRETED, recording

interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs where Triton interprets")


def recorded(batch, length, heads, z, e, chunk, slots=0, dtype=torch.bfloat16):
    """Kernels of both passes on tensors without memory."""

    def meta(*shape, dtype=dtype):
        return torch.empty(*shape, dtype=dtype, device="meta")

    qk, v = meta(batch, length, heads, z), meta(batch, length, heads, e)
    caches = meta(batch, slots, heads, z), meta(batch, slots, heads, e)
    position = known = meta(batch, dtype=torch.int64)
    resets = meta(batch, length, dtype=torch.bool)
    places = position, *bounds(position, known, resets, length, chunk)
    settings = passes.Settings(chunk, 10_000.0, 0, 0, False)
    with recording() as launches:
        out, q, k, lse = form.attention_forward(qk, qk, v, *caches, *places, settings)
        forward = len(launches)
        form.attention_backward(v, None, out, q, k, v, *caches, lse, *places, settings)
    return launches[:forward], launches[forward:]


@pytest.mark.parametrize("target", tiles.TARGETS)
def test_both_passes_can_be_listed_without_memory_at_7b(target):
    with tiles.compiling_for(target):
        forward, backward = recorded(1, 32_768, 4, 256, 2048, 4096)
    names = [launch.kernel.__name__ for launch in forward]
    assert names == ["rotate_kernel"] * 2 + ["forward_kernel"]
    names = [launch.kernel.__name__ for launch in backward]
    part = ["weights_kernel", "finish_kernel", "query_kernel", "key_kernel", "key_kernel"]
    assert names[:6] == ["delta_kernel", *part]
    assert names[-7:] == [*part, *["rotate_kernel"] * 2]
    grid_m, grid_n = 128, 128
    for launch in forward + backward:
        sizes = dict(launch.configs[0].tiles)
        grid = launch.grid(sizes)
        assert all(0 < n < 2**31 for n in grid)
        assert all(n < 2**16 for n in grid[1:])
        if "GRID_M" in launch.arguments:
            assert (launch.arguments["GRID_M"], launch.arguments["GRID_N"]) == (grid_m, grid_n)
            assert grid_m % sizes["M"] == 0 and grid_n % sizes["N"] == 0
        if launch.kernel.__name__ == "weights_kernel":
            assert sizes["M"] == grid_m
            scratch = sum(launch.arguments[k].numel() * 2 for k in ("p_weight", "p_high", "p_low"))
            assert scratch <= passes.SCRATCH


@pytest.mark.parametrize("chunk", (8192, 16_384))
def test_scratch_is_bounded_across_heads_and_rows(chunk):
    with tiles.compiling_for("sm_90"):
        _, backward = recorded(3, chunk, 4, 256, 2048, chunk)
    weights = [launch for launch in backward if launch.kernel.__name__ == "weights_kernel"]
    parts = [(launch.arguments["head"], launch.arguments["chunk"]) for launch in weights]
    # A row may begin amid a chunk and end in the next. One head's chunk may be more than the bound.
    assert parts == list(itertools.product(range(12), range(2)))
    for launch in weights:
        scratch = sum(launch.arguments[k].numel() * 2 for k in ("p_weight", "p_high", "p_low"))
        assert scratch <= max(passes.SCRATCH, 6 * chunk**2)


def test_a_short_call_takes_little_scratch():
    with tiles.compiling_for("sm_90"):
        _, backward = recorded(8, 300, 1, 256, 2048, 4096)
    weights = [launch for launch in backward if launch.kernel.__name__ == "weights_kernel"]
    assert len(weights) == 1
    # Two chunks may be touched; 427 queries or keys are four tiles.
    assert weights[0].arguments["p_weight"].numel() == 8 * 2 * 512 * 512


@interpreted
def test_the_registered_operators_pass_torchs_own_checks():
    normal = draws(3)
    q, k, v = (u.float().requires_grad_() for u in random_qkv(2, 9, 1, 4, 6))
    caches = [normal(2, 3, 1, n).float().requires_grad_() for n in (4, 6)]
    known, position = torch.tensor([3, 1]), torch.tensor([3, 19])
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[1, 4] = True
    places = position, *bounds(position, known, resets, 9, 8)
    arguments = (q, k, v, *caches, *places, 8, 10_000.0, 7, 2**30, True)
    torch.library.opcheck(torch.ops.litmegalodon.chunk_attention_forward, arguments)


@interpreted
def test_fake_tensors_pass_through():
    with FakeTensorMode():
        q, v = torch.empty(2, 20, 3, 4, requires_grad=True), torch.empty(2, 20, 3, 6)
        out, end = chunk_attention(q, q, v, chunk_size=16, impl="triton")
        assert out.shape == v.shape
        assert end.k.shape == (2, 4, 3, 4)
        (grad,) = torch.autograd.grad(out.sum(), q)
        assert grad.shape == q.shape


@interpreted
def test_it_compiles_as_one_graph():
    q, k, v = (u.float().requires_grad_() for u in random_qkv(1, 20, 1, 4, 6))
    position = torch.zeros(1, dtype=torch.int64)

    def run(q, k, v, position):
        return chunk_attention(q, k, v, chunk_size=8, position=position, impl="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    (out, end), (want, want_end) = (f(q, k, v, position) for f in (compiled, run))
    assert_equal(out, want)
    assert_equal(end.k, want_end.k)
    grads = [torch.autograd.grad(u.square().sum(), (q, k, v)) for u in (out, want)]
    for got, expected in zip(*grads, strict=True):
        assert_equal(got, expected)
    with pytest.raises(RuntimeError, match="begin at a chunk boundary"):
        compiled(q, k, v, position + 3)


@interpreted
def test_a_compiled_call_with_a_cache_is_as_without_compiling():
    q, k, v = (u.float() for u in random_qkv(2, 20, 1, 4, 6))
    whole, _ = chunk_attention(q, k, v, chunk_size=8, impl="triton")

    @torch.compile(backend="aot_eager")
    def call(q, k, v, position, kv):
        return chunk_attention(q, k, v, chunk_size=8, position=position, kv=kv, impl="triton")

    outputs, kv, position = [], None, torch.zeros(2, dtype=torch.int64)
    for start, stop in ((0, 11), (11, 12), (12, 20)):
        out, kv = call(*(u[:, start:stop] for u in (q, k, v)), position, kv)
        outputs.append(out)
        position = position + stop - start
    assert_equal(torch.cat(outputs, dim=1), whole, 1e-5)


@pytest.mark.parametrize(
    "z, chunk, message",
    (
        (258, 4, "at most 256 features a head in q, not 258"),
        (4, 40_000, "at most 32,768 tokens, not 40,000"),
    ),
)
@interpreted
def test_what_its_kernels_can_not_hold_is_refused(z, chunk, message):
    q = torch.zeros(1, 3, 1, z)
    with pytest.raises(ValueError, match=message):
        chunk_attention(q, q, q, chunk_size=chunk, impl="triton")
