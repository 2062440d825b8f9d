"""What has been read, in numbers."""

from collections.abc import Sequence
from typing import Any

from litmegalodon.data.packing import Rows


def counts_of(stores: list[Any]) -> dict[str, int]:
    """Documents, bytes and tokens of stores."""
    return {
        name: sum(getattr(store, f"num_{name}") for store in stores)
        for name in ("documents", "bytes", "tokens")
    }


def row_counts_of(rows: Sequence[Rows]) -> dict[str, int | float]:
    """Rows, and the part of their positions that holds tokens."""
    count = sum(map(len, rows))
    real = sum(part.filled for part in rows)
    return {"rows": count, "utilisation": real / max(1, sum(len(p) * p.seq_len for p in rows))}
