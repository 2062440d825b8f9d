"""The language-model loss, without a copy of the logits where they are large."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy

from litmegalodon.models.config import MAX_LOGITS
from litmegalodon.models.rows import cast, product_dtype

IGNORED = -100


def sum_of_nll(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods of labels, in nats, float32 or better.

    Args:
        hidden: [R, D], what the output matrix is applied to.
        weight: [V, D], the output matrix.
        labels: int64 [R]; -100 is ignored.
    """
    if labels.numel() * weight.shape[0] > MAX_LOGITS:
        # Autocast does not know this product.
        hidden, weight = cast(product_dtype(hidden), hidden, weight)
        options = torch.nn.LinearCrossEntropyOptions()
        nll = linear_cross_entropy(
            hidden, weight, labels, ignore_index=IGNORED, reduction="none", options=options
        )
        # Its own sum would be rounded to bfloat16 in a bfloat16 model.
        return nll.to(torch.promote_types(nll.dtype, torch.float32)).sum()
    logits = linear(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
