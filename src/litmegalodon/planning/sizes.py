"""How large a model's tensors are, and what a process holds and computes; nothing heavy imported.

The formulae are checked against what a real model has and saves for its backward pass. Sizes are
bytes.

Shapes: B rows, l tokens of each on this process, D, z, E, F widths of the model, its queries, its
values and the feed-forward part, G groups, N order, H heads, C chunk, V outputs.
"""

import math
from dataclasses import dataclass

from litmegalodon.models.config import MAX_LOGITS, MegalodonConfig

FLOAT32, FLOAT64 = 4, 8
# Tokens between the states that CEMA keeps, and rows of attention's weights, in PyTorch's form.
CEMA_BLOCK, ATTENTION_ROWS = 64, 128
# Tokens between CEMA's states in the Triton form, where there is enough to do.
CEMA_SEGMENT = 256

Shapes = list[tuple[int, ...]]


def block_shapes(config: MegalodonConfig) -> Shapes:
    """Of a block's parameters."""
    c = config
    dim, z, value, order = c.model_dim, c.z_dim, c.value_dim, c.cema_ndim
    norms = [(dim,)] * (_norm_vectors(c) + 3 * c.norm_affine)
    cema = [(dim, order, 1)] * 2 + [(dim, 1)]
    cema += [(dim, order, 1)] if c.ema == "real" else [(dim, 1, 1), (dim, order, 2)]
    biases = [(value,), (z,), (value,), (dim,)]
    return norms + cema + linear_shapes(c) + biases + [(2, z)] * 2 + [(dim,)] * c.rescale_nffn


def linear_shapes(config: MegalodonConfig) -> Shapes:
    """Of a block's matrices."""
    c = config
    dim, z, value, ffn = c.model_dim, c.z_dim, c.value_dim, c.ffn_hidden_dim
    attention: Shapes = [(value, dim), (z, dim), (value, dim), (dim, dim), (dim, value)]
    return attention + [(ffn, dim), (dim, ffn)] + [(ffn, dim)] * c.swiglu


def head_shapes(config: MegalodonConfig) -> Shapes:
    """Of the output matrix, where it is not the embedding too."""
    return [] if config.share_emb else [(config.num_outputs, config.model_dim)]


def root_shapes(config: MegalodonConfig) -> Shapes:
    """Of the parameters outside the blocks: embedding, final norm, output matrix."""
    dim = config.model_dim
    return [(config.vocab_size, dim), *[(dim,)] * _norm_vectors(config), *head_shapes(config)]


def _norm_vectors(config: MegalodonConfig) -> int:
    """Weight and bias of the norm that stands for TimestepNorm."""
    return 1 if config.norm == "rms" else 2


def _statistics(config: MegalodonConfig) -> int:
    """Numbers that a norm remembers of a row: means and variances."""
    return 2 * config.norm_num_groups if config.norm == "timestep" else 0


def _norm_saved(config: MegalodonConfig, share: "Share") -> int:
    """What a norm saves of a token beside its input and its output."""
    if config.norm == "timestep":
        groups = 2 * FLOAT32 if share.triton else 6 * FLOAT64
        return groups * (config.norm_num_groups + (not share.triton))
    # Mean and deviation; what is normalised by its root is kept too.
    return 2 * FLOAT32 + (FLOAT32 * config.model_dim if config.norm == "rms" else 0)


def numel(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


def parameters(config: MegalodonConfig) -> int:
    return config.num_layers * numel(block_shapes(config)) + numel(root_shapes(config))


def shard(shapes: Shapes, processes: int) -> int:
    """Elements of the first process' share, the largest one, as FSDP2 cuts them: by rows.

    It is also what each process sends of them, as the smaller ones are padded to it.
    """
    return sum(-(-shape[0] // processes) * math.prod(shape[1:]) for shape in shapes)


@dataclass(frozen=True)
class Share:
    """What a process computes of a micro-batch.

    Attributes:
        rows: B.
        length: l.
        sharers: processes that share each row.
        product: bytes of an element that matrix products take and give; 2 for bf16-mixed.
        residual: bytes of an element of the residual stream.
        triton: whether the operators are computed by the Triton kernels.
    """

    rows: int
    length: int
    sharers: int = 1
    product: int = FLOAT32
    residual: int = FLOAT32
    triton: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def block_activations(config: MegalodonConfig, share: Share) -> int:
    """What a block saves for its backward pass, its input included."""
    c, s = config, share
    dim, z, value, states = c.model_dim, c.z_dim, c.value_dim, 2 * c.cema_ndim
    stream = s.residual * dim  # a token's input, T, CEMA's output or Y
    products = s.product * (dim + z + value + value)  # M, Z, V before silu, gate
    feed_forward = s.product * c.ffn_hidden_dim * (1 + c.swiglu)
    norm = _norm_saved(c, s)
    if s.triton and c.chunk_size is not None:
        attention = s.product * (2 * z + value + value) + FLOAT32 * c.num_heads  # q, k, V, A
    else:
        # The softmax's weights: tiles of rows by the keys up to their end.
        chunk = min(c.attention_chunk, s.length)
        rows = min(ATTENTION_ROWS, chunk)
        weights = s.product * c.num_heads * (chunk + rows) // 2
        # Queries and keys in float32; V once more where heads are put first; A.
        attention = 2 * FLOAT32 * z + weights + s.product * value * 2
    if s.triton:
        cema, fixed = FLOAT32 * dim * states / CEMA_SEGMENT, 0
        if s.sharers > 1:
            # What a stretch leaves is told by the same kernels, which save the same again.
            cema *= 2
            norm *= 2 if c.norm == "timestep" else 1
    else:
        block = min(CEMA_BLOCK, s.length)
        cema = FLOAT32 * dim * states / block
        # CEMA's matrices: taps, ends, outs, powers.
        fixed = FLOAT32 * dim * (block * block + 3 * block * states)
        if s.sharers > 1:
            # The same states once more, to tell what a stretch leaves, and ends with all that they
            # were computed from.
            cema *= 2
            fixed += 4 * FLOAT32 * dim * block * states
    fixed += 8 * FLOAT64 * dim * c.cema_ndim  # coefficients
    if s.sharers > 1:
        # What was gathered and merged: of each process its statistics, in float64 too, and the
        # derivative of h towards log q.
        statistics = s.rows * _statistics(c) * (s.sharers + 1)
        fixed += statistics * (FLOAT32 + FLOAT64) + s.rows * FLOAT64 * dim * states
    # Dropout's masks, a byte an element.
    masks = (dim + value + c.ffn_hidden_dim) * (c.hidden_dropout > 0) + 2 * dim * (c.dropout > 0)
    per_token = 4 * stream + products + norm + cema + attention + feed_forward + masks
    return int(s.tokens * per_token + fixed)


def activations(config: MegalodonConfig, share: Share, checkpointing: bool) -> int:
    """What all blocks and the final norm have saved where the backward pass begins.

    With checkpointing a block keeps its input, and what it has gathered of other processes.
    """
    c, s = config, share
    block = block_activations(c, s)
    if checkpointing:
        block = s.tokens * s.residual * c.model_dim
        if s.sharers > 1:
            # Statistics of all, and of CEMA's states what they were merged to: h before and after,
            # and its derivative.
            block += s.rows * FLOAT32 * s.sharers * _statistics(c)
            block += s.rows * (2 * FLOAT64 + FLOAT32) * 2 * c.model_dim * c.cema_ndim
    final = s.tokens * (s.residual * c.model_dim + _norm_saved(c, s))
    # Of the embeddings' dropout: a mask, on a CPU the numbers drawn and what they multiply.
    mask = 1 if s.triton else 2 * s.residual
    dropout = s.tokens * c.model_dim * mask * (c.dropout > 0)
    return c.num_layers * block + final + dropout


def loss_saved(config: MegalodonConfig, share: Share) -> int:
    """What the loss saves: the final norm's output, and log-probabilities where they are few."""
    c, s = config, share
    matrix = 0
    if s.product != s.residual:
        matrix = s.product * c.num_outputs * c.model_dim  # cast
    if s.tokens * c.num_outputs > MAX_LOGITS:
        return s.tokens * s.product * c.model_dim + matrix
    return s.tokens * (s.product * c.model_dim + FLOAT32 * c.num_outputs) + matrix


def loss_working(config: MegalodonConfig, share: Share) -> int:
    """What the loss takes for the moment: logits or a piece of them, and gradients."""
    c, s = config, share
    logits = s.tokens * c.num_outputs
    if logits <= MAX_LOGITS:
        return logits * (s.product + FLOAT32)
    # Pieces as large as its input, and the gradients of input and matrix.
    return 2 * s.tokens * s.residual * c.model_dim


def block_working(config: MegalodonConfig, share: Share, checkpointing: bool) -> int:
    """What a block takes for the moment in its backward pass: gradients, half the size of what it
    saves (an estimate), and with checkpointing that again; of rows that are shared all processes'
    states, as gathered and with that before the row, or their gradients.
    """
    c, s = config, share
    saved = block_activations(c, s)
    gathered = 2 * s.rows * (s.sharers + 1) * FLOAT32 * 2 * c.model_dim * c.cema_ndim
    return saved // 2 + saved * checkpointing + gathered * (s.sharers > 1)


def forward_flops(config: MegalodonConfig, length: int) -> float:
    """Arithmetic of a token's forward pass in rows of a length, a multiply-add being two.

    Matrix products, attention to the tokens before in the chunk, and CEMA as a recurrence.
    """
    c = config
    matrices = numel([shape for shape in block_shapes(c) if len(shape) == 2 and min(shape) > 2])
    keys = (min(c.attention_chunk, length) + 1) / 2
    attention = keys * (c.z_dim + c.value_dim)
    # h = q h + p x, y = Re(g h): 8 and 4 operations a state.
    cema = 12 * c.model_dim * c.cema_ndim
    return c.num_layers * (2 * (matrices + attention) + cema) + 2 * c.num_outputs * c.model_dim


def step_flops(config: MegalodonConfig, length: int, checkpointing: bool) -> tuple[float, float]:
    """A token's arithmetic of a training step: the model's, thrice the forward pass, and what is
    done, with blocks computed twice under checkpointing.
    """
    forward = forward_flops(config, length)
    again = forward - 2 * config.num_outputs * config.model_dim if checkpointing else 0
    return 3 * forward, 3 * forward + again


def message(config: MegalodonConfig, rows: int) -> tuple[int, int]:
    """What a process sends of its rows' states in a layer: TimestepNorm's, and CEMA's."""
    statistics = rows * FLOAT32 * _statistics(config)
    return statistics, rows * FLOAT32 * 2 * config.model_dim * config.cema_ndim
