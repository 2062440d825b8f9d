"""Checkpoints as other implementations write them, made from a model's weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from litmegalodon.models import Megalodon

# Which axis of which of the reference's parameters its model-parallel ranks share, read off its
# modules: ColumnParallelLinear and per-channel parameters 0, RowParallelLinear, ParallelEmbedding
# and the affine of queries and keys 1, what works on gathered activations none.
AXES = {
    "embed.weight": 1,
    "output.output.weight": 1,
    "output.final_norm.weight": 0,
    "output.final_norm.bias": 0,
    "output.final_norm.prior_count": None,
    "output.final_norm.prior_mean": 0,
    "output.final_norm.prior_logv": 0,
    "rope.freqs": None,
    "mega.gamma": 1,
    "mega.beta": 1,
    "mega.timenorm.weight": 0,
    "mega.timenorm.bias": 0,
    "mega.timenorm.prior_count": None,
    "mega.timenorm.prior_mean": 0,
    "mega.timenorm.prior_logv": 0,
    "mega.cema.alpha": 0,
    "mega.cema.delta": 0,
    "mega.cema.theta": 0,
    "mega.cema.gamma": 0,
    "mega.cema.omega": 0,
    "mega.rmsnorm.weight": None,
    "mega.wv.weight": 0,
    "mega.wv.bias": 0,
    "mega.wz.weight": 0,
    "mega.wz.bias": 0,
    "mega.wr.weight": 0,
    "mega.wr.bias": 0,
    "mega.wh1.weight": 0,
    "mega.wh1.bias": 0,
    "mega.wh2.weight": 1,
    "nffn.alpha": None,
    "nffn.norm.weight": None,
    "nffn.norm.bias": None,
    "nffn.fc1.weight": 0,
    "nffn.fc2.weight": 1,
    "nffn.fc3.weight": 0,
}


def reference_tensors(model: Megalodon) -> dict[str, Tensor]:
    """A model's state dict with the buffers of the reference."""
    config = model.config
    z = config.z_dim // config.num_heads
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    base = 10_000 if config.rope_base is None else config.rope_base
    tensors["rope.freqs"] = 1.0 / torch.tensor([base ** (j / z) for j in range(0, z, 2)])
    norms = [f"layers.{i}.mega.timenorm" for i in range(config.num_layers)]
    for norm in [*norms, "output.final_norm"]:
        tensors[f"{norm}.prior_count"] = torch.tensor(0)
        tensors[f"{norm}.prior_mean"] = torch.zeros(config.norm_num_groups)
        tensors[f"{norm}.prior_logv"] = torch.zeros(config.norm_num_groups)
    return tensors


def shard_of(tensors: dict[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """What one of the reference's model-parallel ranks holds."""

    def part(name: str, value: Tensor) -> Tensor:
        axis = AXES[name.split(".", 2)[2] if name.startswith("layers.") else name]
        return value if axis is None else value.chunk(ranks, axis)[rank].clone()

    return {name: part(name, value) for name, value in tensors.items()}


def write_reference(model: Megalodon, folder: Path, ranks: int = 1, config: bool = True) -> Path:
    """A folder with consolidated.pth or its shards, and the two JSON files beside them."""
    folder.mkdir(parents=True)
    tensors = reference_tensors(model)
    for rank in range(ranks):
        name = "consolidated.pth" if ranks == 1 else f"consolidated.{rank:02d}.pth"
        torch.save(shard_of(tensors, rank, ranks), folder / name)
    about = {"model_parallel_size": ranks, "dtype": "fp32"}
    (folder / "consolidate_config.json").write_text(json.dumps(about))
    if config:
        theirs = model.config.to_dict() | {"efficient_attn": "fused", "vocab_size": -1}
        kept = {"model": theirs | {"layerwise_ckpt": False}, "tokenizer": {"path": "t.model"}}
        (folder / "config.json").write_text(json.dumps(kept))
    return folder


def megalodon_hf_tensors(model: Megalodon) -> dict[str, Tensor]:
    """A model's weights in the names and layout of megalodon-hf."""
    config, own = model.config, model.state_dict()
    z = config.z_dim // config.num_heads
    # Their feature j of a head is our 2j, their z/2 + j our 2j + 1.
    place = {j: 2 * j for j in range(z // 2)} | {z // 2 + j: 2 * j + 1 for j in range(z // 2)}
    order = torch.tensor([h * z + place[j] for h in range(config.num_heads) for j in range(z)])
    theirs = {
        "model.embed.weight": own["embed.weight"],
        "model.norm.weight": own["output.final_norm.weight"],
        "model.norm.bias": own["output.final_norm.bias"],
        "lm_head.weight": own["output.output.weight"],
    }
    for i in range(config.num_layers):
        a, f = f"model.layers.{i}.attn.", f"model.layers.{i}.ffn."
        m, n = f"layers.{i}.mega.", f"layers.{i}.nffn."
        for name in ("timenorm.weight", "timenorm.bias", "cema.alpha", "cema.delta", "cema.theta"):
            theirs[a + name] = own[m + name]
        for name in ("wv", "wr", "wh1"):
            theirs[f"{a}{name}.weight"] = own[f"{m}{name}.weight"]
            theirs[f"{a}{name}.bias"] = own[f"{m}{name}.bias"]
        theirs[a + "wh2.weight"] = own[m + "wh2.weight"]
        theirs[a + "wh2.bias"] = torch.zeros(config.model_dim)
        theirs[a + "wz.weight"] = own[m + "wz.weight"][order]
        theirs[a + "wz.bias"] = own[m + "wz.bias"][order]
        theirs[a + "gamma"] = own[m + "gamma"][:, order]
        theirs[a + "beta"] = own[m + "beta"][:, order]
        theirs[a + "rmsnorm.gamma"] = own[m + "rmsnorm.weight"]
        theirs[a + "cema.gamma_real"] = own[m + "cema.gamma"][..., 0]
        theirs[a + "cema.gamma_imag"] = own[m + "cema.gamma"][..., 1]
        theirs[a + "cema.omega"] = own[m + "cema.omega"][:, 0]
        theirs[f + "norm.weight"] = own[n + "norm.weight"] + 1
        theirs[f + "norm.bias"] = own[n + "norm.bias"]
        for name in ("fc1", "fc2", "fc3"):
            theirs[f"{f}{name}.weight"] = own[f"{n}{name}.weight"]
            theirs[f"{f}{name}.bias"] = torch.zeros(len(own[f"{n}{name}.weight"]))
    return {name: value.clone().contiguous() for name, value in theirs.items()}


def write_megalodon_hf(model: Megalodon, folder: Path, **changes) -> Path:
    """A folder as its save_pretrained leaves it; `changes` of the config."""
    folder.mkdir(parents=True)
    save_file(megalodon_hf_tensors(model), folder / "model.safetensors")
    theirs = model.config.to_dict() | {
        "model_type": "megalodon",
        "rope_base": model.config.rope_base or 10_000.0,
        "max_positions": 1_000_000,
        "max_cache_len": None,
        "cache_unbounded": False,
    }
    (folder / "config.json").write_text(json.dumps(theirs | changes))
    return folder


def assert_same_weights(a: Megalodon, b: Megalodon) -> None:
    """Bit for bit, by name."""
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
