"""A block as plain autograd, line by line as the mathematics states it: no tiles, no hand-written
gradients of what lies between the operators.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm, rms_norm, silu

from litmegalodon.models import Megalodon
from litmegalodon.ops import chunk_attention


def naive_nll(model: Megalodon, tokens: Tensor, resets: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods of predicting each token itself, without dropout."""
    c, position = model.config, tokens.new_zeros(len(tokens))
    x = model.embed(tokens)
    for block in model.layers:
        y = _attention(block.mega, x, position, resets)
        x = _feed_forward(block.nffn, y, x if c.residual == "two_hop" else y)
    hidden = _norm(model.output.final_norm, c, x, resets)
    logits = model.output.output(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    assert c.dropout == c.hidden_dropout == c.attention_dropout == 0
    return cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")


def _attention(mega, x: Tensor, position: Tensor, resets: Tensor) -> Tensor:
    c = mega.config
    wide = torch.promote_types(x.dtype, torch.float32)
    t = _norm(mega.timenorm, c, x, resets)
    ema = _average(mega.cema, c, t, resets)
    weight = None if mega.rmsnorm.weight is None else mega.rmsnorm.weight.to(wide) + 1
    m = rms_norm(ema.to(wide), (c.model_dim,), weight, c.norm_eps).to(x.dtype)
    size = c.z_dim // c.num_heads
    z = mega.wz(m).to(wide).unflatten(-1, (-1, size))
    v = silu(mega.wv(t))
    gamma, beta = (u.to(wide).view(2, -1, size) for u in (mega.gamma, mega.beta))
    if c.attention == "normalised":
        z = rms_norm(z, (size,), eps=c.norm_eps)
        q, k = (z * ((gamma[i] + 1) / math.sqrt(size)) + beta[i] for i in (0, 1))
    else:
        # The scores' factor, which is 1 in the operator, goes to the queries.
        q, k = (silu(z) * (gamma[i] + 1) + beta[i] for i in (0, 1))
        q = q / math.sqrt(size)
    q, k = q.to(v.dtype), k.to(v.dtype)
    a, _ = chunk_attention(
        q,
        k,
        v.unflatten(-1, (c.num_heads, -1)),
        chunk_size=c.chunk_size or x.shape[1],
        rope_base=c.rope_base or 10_000.0,
        position=position,
        resets=resets,
    )
    return mega.wh1(m) + mega.wh2(a.flatten(2) * silu(mega.wr(m))) + x


def _norm(norm, c, x: Tensor, resets: Tensor) -> Tensor:
    if c.norm == "timestep":
        return norm(x, None, resets)[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    centred = x.to(wide)
    if c.norm == "layer":
        centred = centred - centred.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()
    y = y * (norm.weight.to(wide) + 1)
    return (y if c.norm == "rms" else y + norm.bias.to(wide)).to(x.dtype)


def _average(cema, c, x: Tensor, resets: Tensor) -> Tensor:
    if c.ema == "complex":
        return cema(x, None, resets)[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    p, kept = (u.to(wide).squeeze(-1).sigmoid() for u in (cema.alpha, cema.delta))
    gamma = cema.gamma.to(wide).squeeze(-1) / math.sqrt(c.cema_ndim)
    h, outputs = x.new_zeros(len(x), *p.shape, dtype=wide), []
    for t in range(x.shape[1]):
        h = torch.where(resets[:, t, None, None], 0, h)
        h = (1 - p * kept) * h + p * x[:, t, :, None].to(wide)
        outputs.append((gamma * h).sum(-1) + cema.omega.to(wide).squeeze(-1) * x[:, t].to(wide))
    return torch.stack(outputs, dim=1).to(x.dtype)


def _feed_forward(nffn, y: Tensor, x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = None if nffn.norm.weight is None else nffn.norm.weight.to(wide) + 1
    bias = None if nffn.norm.bias is None else nffn.norm.bias.to(wide)
    f = layer_norm(y.to(wide), y.shape[-1:], weight, bias, nffn.config.norm_eps).to(x.dtype)
    u = silu(nffn.fc1(f))
    if nffn.fc3 is not None:
        u = u * nffn.fc3(f)
    out = nffn.fc2(u)
    return (out if nffn.alpha is None else out * nffn.alpha) + x
