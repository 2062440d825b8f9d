"""What a model remembers of a text, and the step that takes it further.

Shapes: B rows, L tokens, V vocabulary entries.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from litmegalodon.models import Megalodon, MegalodonState


class TextState(NamedTuple):
    """What a model remembers of a text, and the text's last token, which it has not read yet.

    A value: it may be kept, and continued many times. memory None: nothing was read.
    """

    memory: MegalodonState | None
    last: int

    @property
    def tokens(self) -> int:
        """Tokens of the text, the BOS that opens it included."""
        return 1 if self.memory is None else int(self.memory.position[0]) + 1


@torch.no_grad()
def advance(
    model: Megalodon, tokens: Tensor, memory: MegalodonState | None
) -> tuple[Tensor, MegalodonState]:
    """tokens [B, L] -> logits after the last one [B, V], memory; the module's mode is restored."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        tokens = tokens.to(next(model.parameters()).device)
        logits, memory = model(tokens, memory, last_only=True)
    finally:
        if was_training:
            model.train()
    return logits[:, -1], memory
