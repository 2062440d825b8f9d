"""Matrix products that are summed up."""

from torch import Tensor


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, matrices or batches of them, in total's precision where theirs is lower."""
    if total.dtype != a.dtype:
        total += a @ b
    elif total.dim() == 2:
        total.addmm_(a, b)
    else:
        total.baddbmm_(a, b)
