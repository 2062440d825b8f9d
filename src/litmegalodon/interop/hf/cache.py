"""The network's memory as transformers passes a cache around, and rows that begin with padding."""

import torch
from torch import Tensor

from litmegalodon.models import MegalodonConfig, MegalodonState

UNUSABLE = (
    "attention_mask: a row's padding stands after its text, so nothing can be read on from it; pad"
    " on the left (tokenizer.padding_side='left')"
)


class MegalodonCache:
    """What was read: a state of fixed size, whose rows beam search may reorder.

    Attributes:
        seen: tokens that went through the model, padding included.
    """

    is_compileable = False
    # From transformers 5.24 on: a memory is never shortened, and generate() cuts what was read off
    # its input by get_seq_length(), which it does not where all layers are linear.
    is_croppable = False
    is_linear = (False,)

    def __init__(self, state: MegalodonState | None, seen: int) -> None:
        self._state, self.seen = state, seen

    @property
    def state(self) -> MegalodonState:
        """The memory; ValueError where padding stood after a row's text."""
        if self._state is None:
            raise ValueError(UNUSABLE)
        return self._state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that need not be given again."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was."""
        if self._state is not None:
            self._state = self._state.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        state = self.state
        rows = torch.arange(state.batch, device=state.position.device)
        self._state = state.select(rows.repeat_interleave(repeats))


def check_shape(mask: Tensor, batch: int, lengths: set[int]) -> None:
    """ValueError where an attention_mask is not [batch, one of the lengths]."""
    if mask.dim() != 2 or len(mask) != batch or mask.shape[1] not in lengths:
        allowed = " or ".join(f"[{batch}, {length}]" for length in sorted(lengths))
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; it must be {allowed}, one value a token"
        )


def padding_of(mask: Tensor) -> tuple[Tensor, bool]:
    """How a batch is padded, from its attention_mask [B, L].

    Returns:
        int64 [B], padding before each row's text; and whether any stands after one.

    Raises:
        ValueError: the mask hides tokens amid a row, or hides a whole row.
    """
    kept, length = mask.bool(), mask.shape[1]
    count = kept.sum(1)
    if not bool((count > 0).all()):
        raise ValueError("attention_mask: hides a whole row; leave the row out")
    before = kept.int().argmax(1)
    after = length - before - count
    last = length - 1 - kept.flip(1).int().argmax(1)
    if not torch.equal(last - before + 1, count):
        raise ValueError("attention_mask: hides tokens amid a row; only padding at an end can be")
    return before, bool((after > 0).any())


def before_padding(
    config: MegalodonConfig, before: Tensor, dtype: torch.dtype
) -> tuple[MegalodonState, Tensor]:
    """Where rows have to begin for their texts to begin on the grid of chunks.

    Padding takes the last places of the chunks before; a reset at the text's first token makes
    invisible what was read there.

    Args:
        before: int64 [B], padding before each row's text.

    Returns:
        a state that has read nothing, and int64 [B], the places that its rows begin at.
    """
    places = -before % config.chunk_size
    slots = int(places.max())
    state = MegalodonState.fresh(config, len(before), slots, dtype, before.device)
    return MegalodonState.from_tensors(state.tensors() | {"position": places}), places


def without_padding(state: MegalodonState, start: Tensor, before: Tensor) -> MegalodonState:
    """The state of rows that began at `start` with so much padding as if there had been none."""
    # A whole number of chunks is taken off: the slots of the open one stay where they are.
    tensors = state.tensors()
    return MegalodonState.from_tensors(tensors | {"position": tensors["position"] - start - before})
