"""Blocks of time taken apart where documents begin, so that no product mixes two documents.

Nothing is masked by multiplying with zero or undone by subtracting: a piece holds its document's
tokens at their places in the block and zeros elsewhere, and each token is read back from its own
piece.

Shapes: B batch, J blocks a row, P pieces a row (rows with fewer are filled up), T block, D
channels.
"""

import torch
from torch import Tensor


class Pieces:
    """How the blocks of a stretch fall apart.

    Args:
        resets: bool [B, J * T], True at a document's first token.
        block: T.

    Attributes:
        continues: bool [B, P], whether a piece goes on with the document before it.
        counts: int64 [B], pieces of a row.
    """

    def __init__(self, resets: Tensor, block: int):
        batch = resets.shape[0]
        segment = resets.reshape(-1, block).long().cumsum(1)  # BJ x T, 0: began before this block
        numbers = (segment[:, -1] + 1).view(batch, -1)  # B x J
        self.counts = numbers.sum(1)
        most = int(self.counts.max())
        rows = torch.arange(batch, device=resets.device)[:, None]
        base = (rows * most + numbers.cumsum(1) - numbers).flatten()  # BJ, a block's first piece
        piece = base[:, None] + segment  # BJ x T
        self._block = torch.zeros(batch * most, dtype=torch.int64, device=resets.device)
        blocks = torch.arange(len(base), device=resets.device)
        self._block[piece] = blocks[:, None].expand_as(piece)
        # A block that begins with a document has an empty first piece.
        self._block[base] = blocks
        own = torch.arange(batch * most, device=resets.device)[:, None]
        self._mask = piece[self._block] == own
        self._token = (piece * block + torch.arange(block, device=resets.device)).flatten()
        self.continues = torch.zeros(batch * most, dtype=torch.bool, device=resets.device)
        self.continues[base] = True
        self.continues = self.continues.view(batch, most)

    def apart(self, x: Tensor) -> Tensor:
        """Blocks [D, BJ, T] -> pieces [D, BP, T]."""
        return torch.where(self._mask, x.index_select(1, self._block), 0)

    def together(self, y: Tensor) -> Tensor:
        """Pieces [D, BP, T] -> blocks [D, BJ, T], each token from its own piece."""
        return y.flatten(1).index_select(1, self._token).unflatten(1, (-1, y.shape[2]))
