"""The public function of chunk attention."""

from collections.abc import Callable

import torch
from torch import Tensor

from litmegalodon.ops.chunk_attention.places import Places, locate
from litmegalodon.ops.chunk_attention.pytorch import chunk_attention_pytorch
from litmegalodon.ops.chunk_attention.reference import chunk_attention_reference
from litmegalodon.ops.chunk_attention.state import KeyValueState
from litmegalodon.ops.dispatch import check_input, check_shapes, choose, public


def chunk_attention_triton(*args) -> tuple[Tensor, KeyValueState]:
    """The Triton form, imported when it is needed: not every machine has Triton."""
    from litmegalodon.ops.chunk_attention.triton import chunk_attention_triton as form

    return form(*args)


@public
def chunk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_size: int,
    rope_base: float = 10_000.0,
    position: int | Tensor | Places = 0,
    kv: KeyValueState | None = None,
    resets: Tensor | None = None,
    dropkey: float = 0.0,
    seed: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, KeyValueState]:
    """Causal softmax attention inside chunks of `chunk_size` tokens, never across.

    Scores are q . k without a further scale. Chunks are cut on the grid of positions, which resets
    do not shift.

    Args:
        q, k: [B, L, H, z], not rotated, z even; v: [B, L, H, e], any e.
        chunk_size: C.
        rope_base: base of the rotary frequencies.
        position: tokens before this call, int or int64 [B]; a model finds Places once a call, which
            saves each layer from reading them.
        kv: keys and values of the chunk that the call begins in.
        resets: bool [B, L]; a token where True sees nothing before it.
        dropkey: probability that a (query, key) pair is hidden before the softmax (no rescaling).
        seed: of DropKey's mask, needed with dropkey > 0; up to 64 bits.
        impl: auto, reference, torch or triton (z up to 256, chunk_size up to 32,768).

    Returns:
        out [B, L, H, e] in v's dtype, and the keys and values of the chunk that the call ends in.

    Raises:
        ValueError: a dtype, shape, setting or impl that can't be served.

    Source:
        paper, section 3.3; released reference (RoPE positions local to the chunk, DropKey).
    """
    check_input("chunk_attention", v, resets)
    if chunk_size < 1:
        raise ValueError(f"chunk_attention: chunk_size={chunk_size}; must be at least 1")
    if q.shape[-1] % 2:
        raise ValueError(f"chunk_attention: q has {q.shape[-1]} features a head; RoPE needs pairs")
    if not 0.0 <= dropkey < 1.0:
        raise ValueError(f"chunk_attention: dropkey={dropkey}; must be in [0, 1)")
    if dropkey > 0.0 and seed is None:
        raise ValueError(f"chunk_attention: dropkey={dropkey} needs a seed")
    batch, _, heads, z = q.shape
    check_shapes(
        "chunk_attention",
        k=(k, tuple(q.shape)),
        v=(v, (*q.shape[:3], v.shape[-1])),
        resets=(resets, tuple(q.shape[:2])),
    )
    if kv is not None:
        slots = kv.k.shape[1]
        check_shapes(
            "chunk_attention",
            kv_k=(kv.k, (batch, slots, heads, z)),
            kv_v=(kv.v, (batch, slots, heads, v.shape[-1])),
            kv_length=(kv.length, (batch,)),
        )
    forms = {
        "reference": chunk_attention_reference,
        "torch": chunk_attention_pytorch,
        "triton": chunk_attention_triton,
    }
    refusal = None
    if q.shape[-1] > 256:
        refusal = f"takes at most 256 features a head in q, not {q.shape[-1]}; use impl='torch'"
    elif chunk_size > 2**15:
        # A chunk's pairs are numbered in 32 bits.
        refusal = f"takes chunks of at most 32,768 tokens, not {chunk_size:,}; use impl='torch'"
    form = choose("chunk_attention", impl, forms, q, refusal, batch * heads)
    drop = (dropkey, seed) if dropkey > 0.0 else None
    # The size of the state changes with every call of a generation: torch.compile leaves those.
    call = _call if kv is None or kv.k.shape[1] == 0 else _call_untraced
    return call(form, q, k, v, chunk_size, rope_base, position, kv, resets, drop)


def _call(
    form: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    rope_base: float,
    position: int | Tensor | Places,
    kv: KeyValueState | None,
    resets: Tensor | None,
    drop: tuple[float, int] | None,
) -> tuple[Tensor, KeyValueState]:
    places, slots = position, None if kv is None else kv.k.shape[1]
    if not isinstance(position, Places):
        places = locate(position, slots, *q.shape[:2], chunk_size, q.device)
    if kv is None:
        kv = KeyValueState.fresh(k, v)
    return form(q, k, v, chunk_size, rope_base, places, kv, resets, drop)


_call_untraced = torch.compiler.disable(_call)
