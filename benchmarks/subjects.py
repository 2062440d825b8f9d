"""What the CPU benchmark times: training steps, bare matrix products, CEMA by FFT.

Shapes: B batch, L length, D model_dim, N CEMA order, C chunk.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from litmegalodon.models import Megalodon, MegalodonConfig
from litmegalodon.models.loss import sum_of_nll
from litmegalodon.ops.chunk_attention.causal import ROWS

CONFIG = MegalodonConfig(
    vocab_size=512,
    num_layers=4,
    model_dim=256,
    z_dim=64,
    value_dim=512,
    num_heads=1,
    ffn_hidden_dim=512,
    cema_ndim=16,
    chunk_size=512,
    norm_num_groups=8,
    swiglu=True,
)
# A document begins every so many tokens where resets are timed.
DOCUMENT = 1000
Step = Callable[[], object]


class Llama(nn.Module):
    """A Llama of transformers, scaled-dot-product attention, with as many parameters as `config`.

    The loss is the one of Megalodon, on the same kind of output matrix; nothing is cached.
    """

    def __init__(self, config: MegalodonConfig, wanted: int):
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        dim, layers = config.model_dim, config.num_layers
        # Attention, norms, embedding and head have their sizes; the rest goes to the inner width.
        fixed = layers * (4 * dim * dim + 2 * dim) + dim + 2 * config.vocab_size * dim
        inner = round((wanted - fixed) / (3 * dim * layers))
        self.model = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=dim,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=max(1, dim // 64),
                max_position_embeddings=2**20,
                use_cache=False,
                attn_implementation="sdpa",
            )
        )
        self.output = nn.Linear(dim, config.vocab_size, bias=False)

    def loss(self, tokens: Tensor, targets: Tensor, resets: None = None) -> tuple[Tensor, Tensor]:
        """Sum of the negative log-likelihoods and their number."""
        hidden = self.model(input_ids=tokens, use_cache=False).last_hidden_state
        return sum_of_nll(
            hidden.flatten(0, 1), self.output.weight, targets.flatten()
        ), targets.numel()


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def training_step(
    model: nn.Module, length: int, dtype: torch.dtype = torch.float32, documents: bool = False
) -> Step:
    """A step on one row: forward, loss, backward, AdamW; under autocast where dtype is bfloat16."""
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(512, (2, 1, length), generator=generator)
    resets = None
    if documents:
        begins = torch.randperm(length, generator=generator)[: max(1, length // DOCUMENT)]
        resets = torch.zeros(1, length, dtype=torch.bool).index_fill_(1, begins, True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            step_of(model, optimizer, tokens, targets, resets)

    return step


def step_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    targets: Tensor,
    resets: Tensor | None = None,
) -> None:
    """The bare step: forward, loss, backward, update."""
    optimizer.zero_grad()
    nll, valid = model.loss(tokens, targets, resets=resets)[:2]
    (nll / valid).backward()
    optimizer.step()


def megalodon(checkpointing: bool = False) -> Megalodon:
    """The model of the benchmark."""
    torch.manual_seed(0)
    model = Megalodon(CONFIG).train()
    for block in model.layers:
        block.activation_checkpointing = checkpointing
    return model


def products_of_a_step(length: int) -> Step:
    """The matrix products that a step can't do without, and nothing else.

    Linear layers and output head forward and towards inputs and weights; attention's six products
    over causal blocks of rows. CEMA's and the norms' are not among them: the mathematics does not
    ask for these.
    """
    c = CONFIG
    dim, value, inner = c.model_dim, c.value_dim, c.ffn_hidden_dim
    layers = [(dim, value)] * 2 + [(dim, c.z_dim), (dim, dim), (value, dim)]
    layers += [(dim, inner)] * 2 + [(inner, dim)]
    shapes = layers * c.num_layers + [(dim, c.vocab_size)]
    inputs = {n: torch.randn(length, n) for n in {n for s in shapes for n in s}}
    weights = [torch.randn(out, n) for n, out in shapes]
    chunk = min(c.chunk_size, length)
    heads = (length // chunk * c.num_heads, chunk)
    q, k = torch.randn(2, *heads, c.z_dim // c.num_heads)
    v = torch.randn(*heads, value // c.num_heads)

    def run() -> None:
        for weight in weights:
            out, n = weight.shape
            x, grad = inputs[n], inputs[out]
            x @ weight.T, grad @ weight, grad.T @ x
        for _ in range(c.num_layers):
            for first in range(0, chunk, ROWS):
                rows, keys = slice(first, first + ROWS), slice(0, first + ROWS)
                score = q[:, rows] @ k[:, keys].mT
                out = score @ v[:, keys]
                score.mT @ out, out @ v[:, keys].mT, score @ k[:, keys], score.mT @ q[:, rows]

    return run


def cema_by_fft(
    x: Tensor, alpha: Tensor, delta: Tensor, theta: Tensor, gamma: Tensor, omega: Tensor
) -> Tensor:
    """CEMA as one long convolution: the kernel of length L by powers of q, then real FFTs.

    Shapes as in `litmegalodon.ops.cema`; no state, no resets.
    """
    length, order = x.shape[1], alpha.shape[1]
    p = alpha.squeeze(-1).sigmoid()
    log_decay = torch.log1p(-p * delta.squeeze(-1).sigmoid())
    n = torch.arange(1, order + 1, dtype=x.dtype)
    log_q = torch.complex(log_decay, n * theta.squeeze(-1).sigmoid() * (2 * math.pi / order))
    weight = p * torch.view_as_complex(gamma.contiguous()) / math.sqrt(order)
    powers = torch.exp(log_q[..., None] * torch.arange(length, dtype=x.dtype))  # D x N x L
    kernel = torch.einsum("dn,dnl->dl", weight, powers).real
    size = fast_length(2 * length)
    y = torch.fft.irfft(torch.fft.rfft(x.mT, n=size) * torch.fft.rfft(kernel, n=size), n=size)[
        ..., :length
    ]
    return y.mT + x * omega.squeeze(-1)


def fast_length(least: int) -> int:
    """The smallest product of 2, 3 and 5 that is not below `least`."""
    powers = ((2**a) * (3**b) * (5**c) for a in range(30) for b in range(12) for c in range(8))
    return min(n for n in powers if n >= least)
