"""Blocks of time taken apart where documents begin, so that no product mixes two documents.

Nothing is masked by multiplying with zero or undone by subtracting: a piece holds its document's
tokens at their places in the block and zeros elsewhere, and each token is read back from its own
piece.

Shapes: B batch, J blocks a row, P pieces of all rows, T block, D channels.
"""

import torch
from torch import Tensor


class Pieces:
    """How the blocks of a stretch fall apart.

    The first BJ pieces are what each block holds of the document that began before it, perhaps
    nothing; the others are its further documents, block by block.

    Args:
        resets: bool [B, J * T], True at a document's first token.
        block: T.

    Attributes:
        continues: bool [B, J], whether the state that enters a block reaches its end.
        last: int64 [BJ], the piece that a block ends with.
    """

    def __init__(self, resets: Tensor, block: int):
        segment = resets.reshape(-1, block).long().cumsum(1)  # BJ x T, 0: began before this block
        further = segment[:, -1]
        blocks = torch.arange(len(further), device=resets.device)
        # Where a block's further pieces begin, less one: segment 1 is the first of them.
        before = len(further) + further.cumsum(0) - further - 1
        piece = torch.where(segment == 0, blocks[:, None], before[:, None] + segment)  # BJ x T
        self.last = torch.where(further == 0, blocks, before + further)
        self.continues = (further == 0).view(resets.shape[0], -1)
        self._block = torch.cat([blocks, blocks.repeat_interleave(further)])
        self._mask = (
            piece[self._block] == torch.arange(len(self._block), device=resets.device)[:, None]
        )
        self._token = (piece * block + torch.arange(block, device=resets.device)).flatten()

    def apart(self, x: Tensor) -> Tensor:
        """Blocks [D, BJ, T] -> pieces [D, P, T]."""
        return torch.where(self._mask, x.index_select(1, self._block), 0)

    def together(self, y: Tensor) -> Tensor:
        """Pieces [D, P, T] -> blocks [D, BJ, T], each token from its own piece."""
        return y.flatten(1).index_select(1, self._token).unflatten(1, (-1, y.shape[2]))
