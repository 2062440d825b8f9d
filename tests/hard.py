"""Parameters and inputs at which a mistake shows.

At initialisation a MEGALODON remembers about three tokens, its norms do nothing and its inputs have
mean zero, so a dropped state or a wrong merge would pass unseen. Here CEMA's half-lives are
log-uniform from 1 to 70,000 tokens, every norm, bias, gamma and beta is random, inputs have mean 3.

Shapes: B batch, L length, D features, N CEMA order, G groups, H heads, C chunk.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from interpreter import quicken
from litmegalodon.models import Megalodon, MegalodonConfig, MegalodonState
from litmegalodon.ops import KeyValueState, NormState, cema, chunk_attention, timestep_norm
from litmegalodon.ops.dispatch import triton_refusal

# These tensors are so small that on a busy machine a second thread makes the first wait, up to a
# hundred times as long as it works.
torch.set_num_threads(1)

TRITON_RUNS = triton_refusal(torch.zeros(1)) is None
IMPLS = ("reference", "torch", "triton") if TRITON_RUNS else ("reference", "torch")
if TRITON_RUNS:
    quicken()

BLOCK = 64
RECURRENCES = ("cema", "timestep_norm")
Tensors = dict[str, Tensor]


def draws(seed: int) -> Callable[..., Tensor]:
    """A source of float64 standard normal tensors."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_qkv(batch, length, heads, z, e, seed=1):
    """q, k [B, L, H, z] and v [B, L, H, e] in float64."""
    normal = draws(seed)
    return (
        normal(batch, length, heads, z),
        normal(batch, length, heads, z),
        normal(batch, length, heads, e) + 3,
    )


def hard_cema_parameters(dim: int, order: int, seed: int) -> Tensors:
    """alpha, delta, theta, gamma, omega in float64; half-lives log-uniform from 1 to 70,000."""
    normal = draws(seed)
    places = torch.randperm(dim * order, generator=torch.Generator().manual_seed(seed))
    half_life = 70_000.0 ** (places.double() / max(dim * order - 1, 1)).view(dim, order, 1)
    loss = -torch.expm1(-math.log(2) / half_life)  # 1 - |q| = sigmoid(alpha) sigmoid(delta)
    p = loss.sqrt() * (0.2 * normal(dim, order, 1)).exp()
    p = p.clamp(loss * 1.05, torch.full_like(loss, 0.95))
    # Angles from nearly none, where a memory accumulates, to a whole turn over the N states.
    frequency = dim ** -(torch.arange(1, dim + 1, dtype=torch.float64) / dim).view(dim, 1, 1)
    return {
        "alpha": torch.logit(p),
        "delta": torch.logit(loss / p),
        "theta": torch.logit(frequency),
        "gamma": normal(dim, order, 2),
        "omega": normal(dim, 1),
    }


def hard_config(**changes) -> MegalodonConfig:
    """A small model with several layers, heads and groups, every optional part switched on."""
    settings = dict(
        vocab_size=31,
        num_layers=2,
        model_dim=16,
        z_dim=8,
        value_dim=12,
        num_heads=2,
        ffn_hidden_dim=12,
        cema_ndim=3,
        chunk_size=16,
        norm_num_groups=4,
        swiglu=True,
        rescale_nffn=True,
    )
    return MegalodonConfig(**(settings | changes))


def hard_model(
    config: MegalodonConfig,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    impl: str = "auto",
) -> Megalodon:
    """A model with hard parameters: the same numbers in every dtype and implementation."""
    model = Megalodon(config, impl=impl).double()
    model.initialise(seed)
    normal = draws(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, _, kind = name.rpartition(".")
            if module.endswith("cema"):
                continue
            if name == "embed.weight":
                parameter.copy_(normal(*parameter.shape) + 3)
            elif kind == "alpha":
                parameter.copy_(1 + 0.2 * normal(*parameter.shape))
            elif parameter.dim() == 1 or kind in ("gamma", "beta"):
                parameter.add_(0.3 * normal(*parameter.shape))
        for i, layer in enumerate(model.layers):
            values = hard_cema_parameters(config.model_dim, config.cema_ndim, seed + i)
            for name, value in values.items():
                # Of a real average: no theta, and no imaginary part of gamma.
                if (parameter := getattr(layer.mega.cema, name)) is not None:
                    parameter.copy_(value[..., : parameter.shape[-1]])
    return model.float().to(dtype) if dtype == torch.bfloat16 else model.to(dtype)


def fresh_at(config: MegalodonConfig, positions: list[int], dtype: torch.dtype = torch.float64):
    """The state of rows that have read nothing and whose next tokens stand at `positions`."""
    offset = max(p % config.attention_chunk for p in positions)
    state = MegalodonState.fresh(config, len(positions), offset, dtype)
    return replace(state, position=torch.tensor(positions))


def hard_state(model: Megalodon, positions: list[int], seed: int = 0) -> MegalodonState:
    """What a model remembers of 21 tokens up to `positions`, the last row of a document of five."""
    length, config = 21, model.config
    tokens = hard_tokens(config, len(positions), length, seed + 100)
    resets = torch.zeros(len(positions), length, dtype=torch.bool)
    resets[-1, -5] = True
    start = fresh_at(config, [p - length for p in positions], model.embed.weight.dtype)
    with torch.no_grad():
        return model(tokens, start, resets)[1]


def hard_tokens(config: MegalodonConfig, batch: int, length: int, seed: int = 0) -> Tensor:
    """Random tokens [B, L]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def hard_resets(batch: int, length: int, chunk: int = 16) -> Tensor:
    """bool [B, L]: row 0 begins documents at every awkward place, row 1 at a few, others none."""
    resets = torch.zeros(batch, length, dtype=torch.bool)
    # A row that stands 5 tokens into a chunk of 16 enters the next at 11, one 20 into 150 at 130.
    places = [0, 1, 10, 11, chunk - 1, chunk, 40, 41, BLOCK - 1, BLOCK, 130, length - 1]
    resets[0, [p for p in places if p < length]] = True
    if batch > 1:
        resets[1, [p for p in (5, chunk + 1, 2 * BLOCK) if p < length]] = True
    return resets


@dataclass(frozen=True)
class Operator:
    """One of the three operators in a uniform: named tensors in and out, the state as `state.*`.

    Attributes:
        inputs: (batch, length, seed) -> float64 tensors, an incoming state among them.
        call: (tensors, resets, impl) -> outputs; `y` is the one along time.
        along_time: names of inputs [B, L, ...].
    """

    name: str
    inputs: Callable[[int, int, int], Tensors]
    call: Callable[[Tensors, Tensor | None, str], Tensors]
    along_time: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def has_triton(self) -> bool:
        """Whether the tests that all operators share ask its Triton form, where that runs.

        One of the three attentions, the hardest: its kernels take ten times as long in the
        interpreter, and test_triton_attention.py asks the others at shorter lengths.
        """
        return TRITON_RUNS and self.name in (*RECURRENCES, "attention-staggered")

    def without_state(self, given: Tensors) -> Tensors:
        """The inputs but for the state's numbers; where a row stands is kept."""
        return {k: v for k, v in given.items() if k == "state.position" or "state." not in k}

    def rounded(self, given: Tensors, dtype: torch.dtype) -> Tensors:
        """Inputs as a model in `dtype` has them: activations in it, the rest in float32."""
        low = (*self.along_time, "state.k", "state.v")
        if dtype == torch.float64:
            return given
        return {
            k: v.to(dtype if k in low else torch.float32) if v.is_floating_point() else v
            for k, v in given.items()
        }

    def in_calls(
        self, given: Tensors, resets: Tensor | None, cuts: list[int], impl: str
    ) -> Tensors:
        """One sequence in several calls, each continuing from the state of the one before."""
        length = given[self.along_time[0]].shape[1]
        edges = [0, *sorted(set(cuts)), length]
        state, outputs = {}, []
        for start, stop in pairwise(edges):
            part = {k: v[:, start:stop] for k, v in given.items() if k in self.along_time}
            here = None if resets is None else resets[:, start:stop]
            out = self.call(given | part | state, here, impl)
            outputs.append(out.pop("y"))
            state = out
        return {"y": torch.cat(outputs, dim=1)} | state


def _cema_inputs(batch: int, length: int, seed: int) -> Tensors:
    dim, order = 6, 3
    normal = draws(seed)
    inputs = {"x": normal(batch, length, dim) + 3, "state.h": normal(batch, dim, order, 2)}
    return inputs | hard_cema_parameters(dim, order, seed)


def _cema(given: Tensors, resets: Tensor | None, impl: str) -> Tensors:
    parameters = (given[k] for k in ("x", "alpha", "delta", "theta", "gamma", "omega"))
    y, h = cema(*parameters, given.get("state.h"), resets, impl=impl)
    return {"y": y, "state.h": h}


def _norm_inputs(batch: int, length: int, seed: int) -> Tensors:
    dim, groups = 12, 3
    normal = draws(seed)
    return {
        "x": normal(batch, length, dim) * (1 + normal(dim).abs()) + 3,
        "weight": 0.5 * normal(dim),
        "bias": normal(dim),
        # A row that has read much, one that has read one token, one that has read nothing.
        "state.count": torch.tensor([1000, 1, 0]).repeat(batch)[:batch],
        "state.mean": 1 + normal(batch, groups),
        "state.var": 0.5 + normal(batch, groups) ** 2,
    }


def _norm(given: Tensors, resets: Tensor | None, impl: str) -> Tensors:
    state = None
    if "state.count" in given:
        state = NormState(*(given[f"state.{k}"] for k in NormState._fields))
    parameters = (given[k] for k in ("x", "weight", "bias"))
    y, end = timestep_norm(*parameters, 3, 1e-5, state, resets, impl=impl)
    return {"y": y} | {f"state.{k}": v for k, v in end._asdict().items()}


def _attention(name: str, chunk: int, positions: list[int], dropkey: float = 0.0) -> Operator:
    heads, z, e = 2, 4, 6

    def inputs(batch: int, length: int, seed: int) -> Tensors:
        normal = draws(seed)
        position = torch.tensor(positions).repeat(batch)[:batch]
        offset = position % chunk
        slots = int(offset.max())
        # All of the chunk, all but its first two tokens, nothing: in the rows' order.
        known = torch.stack([offset, (offset - 2).clamp(min=0), 0 * offset])
        known = known[torch.arange(batch) % 3, torch.arange(batch)]
        slot = torch.arange(slots)
        held = (slot < offset[:, None]) & (slot >= (offset - known)[:, None])
        return {
            "q": normal(batch, length, heads, z) + 1,
            "k": normal(batch, length, heads, z),
            "v": normal(batch, length, heads, e) + 3,
            "state.position": position,
            "state.k": normal(batch, slots, heads, z) * held[..., None, None],
            "state.v": (normal(batch, slots, heads, e) + 3) * held[..., None, None],
            "state.length": known,
        }

    def call(given: Tensors, resets: Tensor | None, impl: str) -> Tensors:
        kv = None
        if "state.k" in given:
            kv = KeyValueState(*(given[f"state.{k}"] for k in KeyValueState._fields))
        position = given["state.position"]
        y, end = chunk_attention(
            *(given[k] for k in "qkv"),
            chunk_size=chunk,
            position=position,
            kv=kv,
            resets=resets,
            dropkey=dropkey,
            seed=11 if dropkey else None,
            impl=impl,
        )
        state = {f"state.{k}": v for k, v in end._asdict().items()}
        return {"y": y, "state.position": position + y.shape[1]} | state

    return Operator(name, inputs, call, ("q", "k", "v"))


OPERATORS = [
    Operator("cema", _cema_inputs, _cema, ("x",)),
    Operator("timestep_norm", _norm_inputs, _norm, ("x",)),
    _attention("attention-aligned", 16, [21]),
    _attention("attention-staggered", 16, [5, 27, 48]),
    _attention("attention-long-chunk", 150, [170]),
]
# Every fast form of every operator.
FORMS = [(o, "torch") for o in OPERATORS] + [(o, "triton") for o in OPERATORS if o.has_triton]
ATTENTION_WITH_DROPKEY = [
    _attention("aligned", 16, [21], dropkey=0.3),
    _attention("aligned-other-chunks", 16, [21, 5, 53], dropkey=0.3),
    _attention("staggered", 16, [5, 27, 48], dropkey=0.3),
]


def with_gradients(
    call: Callable[[Tensors], Tensors],
    given: Tensors,
    seed: int = 7,
    cotangents: torch.dtype = torch.float64,
) -> Tensors:
    """Outputs of call(given) and, as `grad.*`, gradients of all inputs.

    The objective has random cotangents on every output: the same numbers, rounded to the dtype
    `cotangents`, whatever the outputs' own dtypes.
    """
    leaves = {k: v.detach().requires_grad_() for k, v in given.items() if v.is_floating_point()}
    outputs = call(given | leaves)
    floating = {k: v for k, v in outputs.items() if v.is_floating_point() and v.requires_grad}
    normal = draws(seed)
    given_back = [normal(*v.shape).to(cotangents).to(v) for v in floating.values()]
    grads = torch.autograd.grad(
        list(floating.values()), list(leaves.values()), given_back, materialize_grads=True
    )
    result = {k: v.detach() for k, v in outputs.items()}
    return result | {f"grad.{k}": g for k, g in zip(leaves, grads, strict=True)}
