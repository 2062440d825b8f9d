"""Bytes that a model saves whose operators are the Triton kernels, for test_plan_sizes.py.

`TRITON_INTERPRET=1 python tests/saved_by_kernels.py` prints them: alone, and sharing rows with one
more process.
"""

import torch

from interpreter import quicken
from litmegalodon.models import Megalodon, MegalodonConfig
from litmegalodon.models.span import Span
from saved_tensors import counting

CONFIG = MegalodonConfig(
    vocab_size=16,
    num_layers=1,
    model_dim=64,
    z_dim=32,
    value_dim=128,
    num_heads=2,
    ffn_hidden_dim=96,
    cema_ndim=4,
    chunk_size=64,
    norm_num_groups=4,
    swiglu=True,
)
LENGTH = 256


class Alike:
    """An exchange with another process that has the same."""

    rank, size = 1, 2

    def start(self, local):
        return lambda: torch.stack([local, local])


def main() -> None:
    quicken()
    model = Megalodon(CONFIG, impl="triton").train()
    tokens = torch.zeros(1, LENGTH, dtype=torch.long)
    resets = torch.zeros(1, 2 * LENGTH, dtype=torch.bool)
    for span in (None, Span(Alike(), resets)):
        with counting(model) as saved, torch.autocast("cpu", torch.bfloat16):
            model.loss(tokens, tokens, span=span)
        print(saved.bytes)


if __name__ == "__main__":
    main()
