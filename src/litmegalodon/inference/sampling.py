"""Choosing the next token from logits, and continuing a prompt one token at a time.

Shapes: B rows, L tokens, V vocabulary entries.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def sample_next(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row from softmax(logits / temperature), restricted to the likeliest.

    `logits` [B, V] -> token ids [B] int64, on the device of `logits`. `temperature=0` takes the
    likeliest token. `top_k` keeps the k likeliest tokens; `top_p` then keeps the fewest whose
    probabilities sum to at least p. `generator` (its device decides where the drawing happens)
    keeps the draw apart from PyTorch's global random state.

    Raises ValueError for a setting out of range and for logits that hold NaN.
    """
    check_drawing(temperature, top_k, top_p)
    if bool(torch.isnan(logits).any()):
        raise ValueError(
            "the logits hold NaN: the weights are unusable, take an earlier checkpoint"
        )
    if temperature == 0:
        return logits.argmax(dim=-1)

    device = generator.device if generator is not None else logits.device
    # [B, V], likeliest first; a stable order makes the choice among equals repeatable
    scores, ids = logits.to(device).float().sort(dim=-1, descending=True, stable=True)
    # Subtracting the largest first: a tiny temperature must not overflow.
    scores = (scores - scores[:, :1]) / temperature
    if top_k is not None:
        scores[:, top_k:] = -torch.inf
    probabilities = scores.softmax(dim=-1)
    if top_p is not None:
        # A token stays while the ones before it have not yet reached p, so the first always stays.
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
        probabilities[:, 0].clamp_(min=torch.finfo(probabilities.dtype).tiny)
    # [B, 1], a rank in the sorted order
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return ids.gather(-1, drawn).squeeze(-1).to(logits.device)


@torch.no_grad()
def continue_text(
    model: nn.Module,
    tokenizer: Any,
    prompt: bytes,
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    agree: Callable[[int], int] | None = None,
) -> bytes:
    """Continue `prompt` as a document of its own and return the new bytes.

    They end where the model ends the document, or after `max_new_tokens`. The prompt is read in one
    call after a BOS; every new token then costs one call on the state, so the cost of a token does
    not grow with the text. `tokenizer` has `encode`, `bytes_of`, `vocab_size`, `bos_id`, `eos_id`.
    Ids outside the tokenizer's vocabulary and BOS are never drawn.

    Where parameters are sharded, every process has to make the same calls: `agree` maps a process's
    drawn token to the one all of them continue with (a broadcast from the first).

    Raises ValueError for a setting out of range. The module's training mode is restored.
    """
    check_drawing(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be 0 or more")
    device = next(model.parameters()).device
    prompt_ids = [int(token) for token in tokenizer.encode(prompt)]
    tokens = torch.tensor([[tokenizer.bos_id, *prompt_ids]], device=device)  # [1, L]
    was_training = model.training
    model.eval()
    state, new_ids = None, []
    try:
        while len(new_ids) < max_new_tokens:
            logits, state = model(tokens, state)  # [1, L, V]
            logits = _allowed(logits[:, -1], tokenizer)
            token = int(sample_next(logits, temperature, top_k, top_p, generator))
            token = agree(token) if agree is not None else token
            if token == tokenizer.eos_id:
                break
            new_ids.append(token)
            tokens = torch.tensor([[token]], device=device)
    finally:
        model.train(was_training)
    # A tokenizer may take a space off a text's first token, which is not the first of these.
    before = len(tokenizer.bytes_of(prompt_ids))
    return tokenizer.bytes_of([*prompt_ids, *new_ids])[before:]


def _allowed(logits: Tensor, tokenizer: Any) -> Tensor:
    # [B, V]: the table may be wider than the vocabulary, and BOS only ever opens a document
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill((ids >= tokenizer.vocab_size) | (ids == tokenizer.bos_id), -torch.inf)


def check_drawing(
    temperature: float, top_k: int | None, top_p: float | None, prefix: str = ""
) -> None:
    """Refuse settings of `sample_next` that are out of range, each named after `prefix`."""
    if not temperature >= 0:
        raise ValueError(
            f"{prefix}temperature={temperature}: must be 0 (always the likeliest token) or more"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"{prefix}top_k={top_k}: must be at least 1, or null for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(
            f"{prefix}top_p={top_p}: must be above 0 and at most 1, or null for all tokens"
        )
