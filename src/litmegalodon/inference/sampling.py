"""Choosing the next token from logits.

Shapes: B rows, V vocabulary entries.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from litmegalodon.inference.drawing import Drawing


def sample_next(
    logits: Tensor,
    drawing: Drawing,
    generators: Sequence[Generator] | None = None,
    recent: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: [B, V].
        drawing: how.
        generators: one a row, whose device decides where the drawing happens: a row's draws then
            depend on no other row, nor on torch's global random state.
        recent: for each row the tokens that `repetition_penalty` is for.

    Returns:
        token ids [B] int64, on the device of `logits`.

    Raises:
        ValueError: the logits hold NaN.
    """
    if bool(torch.isnan(logits).any()):
        raise ValueError(
            "the logits hold NaN: the weights are unusable, take an earlier checkpoint"
        )
    if recent is not None and drawing.repetition_penalty != 1:
        logits = _penalised(logits, recent, drawing.repetition_penalty)
    if drawing.temperature == 0:
        return logits.argmax(dim=-1)

    device = generators[0].device if generators else logits.device
    # [B, V], likeliest first; a stable order makes the choice among equals repeatable
    scores, ids = logits.to(device).float().sort(dim=-1, descending=True, stable=True)
    probabilities = _probabilities(scores, drawing)
    # [B], ranks in the sorted order
    if generators is None:
        ranks = torch.multinomial(probabilities, 1)[:, 0]
    else:
        rows = zip(probabilities, generators, strict=True)
        ranks = torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows])
    return ids.gather(-1, ranks[:, None]).squeeze(-1).to(logits.device)


def _probabilities(scores: Tensor, drawing: Drawing) -> Tensor:
    """What is drawn from, for scores [B, V] in falling order; not normalised."""
    # Subtracting the largest first: a tiny temperature must not overflow.
    scores = (scores - scores[:, :1]) / drawing.temperature
    if drawing.top_k is not None:
        scores[:, drawing.top_k :] = -torch.inf
    probabilities = scores.softmax(dim=-1)
    if drawing.top_p is not None:
        # A token stays while the ones before it have not yet reached p, so the first always stays.
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= drawing.top_p, 0.0)
        probabilities[:, 0].clamp_(min=torch.finfo(probabilities.dtype).tiny)
    if drawing.min_p is not None:
        least = drawing.min_p * probabilities[:, :1]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities


def _penalised(logits: Tensor, recent: Sequence[Sequence[int]], penalty: float) -> Tensor:
    logits = logits.clone()
    for row, tokens in zip(logits, recent, strict=True):
        # Each token once, however often it was drawn.
        ids = torch.tensor(sorted(set(tokens)), dtype=torch.int64, device=logits.device)
        chosen = row[ids]
        row[ids] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    return logits
