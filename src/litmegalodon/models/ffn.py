"""The normalised feed-forward network with its two-hop residual."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.models.layers import LayerNorm, Linear


class NormalizedFeedForward(nn.Module):
    """silu(F W1) [* F W3] W2 with F = LayerNorm(Y), added to the block's input X, not to Y.

    Source: paper, section 3.4 (two-hop residual); released reference.
    """

    def __init__(self, config: MegalodonConfig):
        super().__init__()
        dim, hidden = config.model_dim, config.ffn_hidden_dim
        self.config = config
        self.norm = LayerNorm(dim, config.norm_eps, config.norm_affine)
        self.fc1 = Linear(dim, hidden, bias=False)
        self.fc2 = Linear(hidden, dim, bias=False)
        self.fc3 = Linear(dim, hidden, bias=False) if config.swiglu else None
        self.alpha = nn.Parameter(torch.empty(dim)) if config.rescale_nffn else None

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Attention's output y and the block's input x, both [B, L, D] -> the block's output."""
        f = self.norm(y)
        u = silu(self.fc1(f))
        if self.fc3 is not None:
            u = u * self.fc3(f)
        out = self.fc2(dropout(u, self.config.hidden_dropout, self.training))
        out = dropout(out, self.config.dropout, self.training)
        if self.alpha is not None:
            out = out * self.alpha
        return out + x
