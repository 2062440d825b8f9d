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
        x = _feed_forward(block.nffn, _attention(block.mega, x, position, resets), x)
    hidden, _ = model.output.final_norm(x, None, resets)
    logits = model.output.output(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    assert c.dropout == c.hidden_dropout == c.attention_dropout == 0
    return cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")


def _attention(mega, x: Tensor, position: Tensor, resets: Tensor) -> Tensor:
    c = mega.config
    wide = torch.promote_types(x.dtype, torch.float32)
    t, _ = mega.timenorm(x, None, resets)
    ema, _ = mega.cema(t, None, resets)
    weight = None if mega.rmsnorm.weight is None else mega.rmsnorm.weight.to(wide) + 1
    m = rms_norm(ema.to(wide), (c.model_dim,), weight, c.norm_eps).to(x.dtype)
    size = c.z_dim // c.num_heads
    z = rms_norm(mega.wz(m).to(wide).unflatten(-1, (-1, size)), (size,), eps=c.norm_eps)
    scale = ((mega.gamma.to(wide) + 1) / math.sqrt(size)).view(2, -1, size)
    shift = mega.beta.to(wide).view(2, -1, size)
    v = silu(mega.wv(t))
    q, k = (((z * scale[i]) + shift[i]).to(v.dtype) for i in (0, 1))
    a, _ = chunk_attention(
        q,
        k,
        v.unflatten(-1, (c.num_heads, -1)),
        chunk_size=c.chunk_size,
        rope_base=c.rope_base or 10_000.0,
        position=position,
        resets=resets,
    )
    return mega.wh1(m) + mega.wh2(a.flatten(2) * silu(mega.wr(m))) + x


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
