"""The report's tables as text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def tables(report: Mapping[str, Any]) -> None:
    """Print the machine code, the counts and the share of a block's products."""
    print("\nMachine code (default configurations)\n")
    print(*_aligned(_code_rows(report["passes"])), sep="\n")
    print("\nBytes, arithmetic and rooflines (estimates: no time was measured on a GPU)\n")
    print(*_aligned(_count_rows(report["passes"])), sep="\n")
    print("\nCEMA and TimestepNorm against the block's linear layers (rooflines, estimates)\n")
    print(*_aligned(_block_rows(report["blocks"])), sep="\n")


def _code_rows(passes: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
    head = ("operator", "pass", "shape", "kernel", "target", "tiles", "warps", "registers")
    yield (*head, "spills", "shared", "tensor core", "loads by bits", "stores by bits")
    for one in passes:
        for kernel in one["kernels"]:
            yield (
                *(one[key] for key in ("operator", "direction", "shape")),
                kernel["name"],
                one["target"],
                " ".join(f"{k}={v}" for k, v in kernel["tiles"].items()) or "-",
                str(kernel["warps"]),
                *(
                    ("does not compile",)
                    if kernel["failure"]
                    else (
                        *(f"{kernel[key]:,}" for key in ("registers", "spills", "shared")),
                        _numbers(kernel["tensor_core"]),
                        _widths(kernel["loads"]),
                        _widths(kernel["stores"]),
                    )
                ),
            )


def _count_rows(passes: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
    head = ("operator", "pass", "shape", "kernel", "target", "starts", "loaded MB", "stored MB")
    yield (*head, "x least", "Gflop fp32", "fp64", "special", "products", "µs", "bound by")
    for one in passes:
        if not one["counted"]:
            continue
        where = tuple(one[key] for key in ("operator", "direction", "shape"))
        for kernel in one["kernels"]:
            counts = kernel["counts"]
            moved = counts.get("load", 0) + counts.get("store", 0)
            products = sum(v for k, v in counts.items() if k.startswith("dot "))
            yield (
                *where,
                kernel["name"],
                one["target"],
                str(kernel["launches"]),
                *(f"{counts.get(kind, 0) / 1e6:,.1f}" for kind in ("load", "store")),
                f"{moved / one['least']:.2f}",
                *(f"{counts.get(kind, 0) / 1e9:,.2f}" for kind in ("fp32", "fp64", "special")),
                f"{products / 1e9:,.1f}",
                _microseconds(kernel),
                kernel["bound"],
            )
        yield (
            *where,
            "all",
            one["target"],
            "",
            f"{one['moved'] / 1e6:,.1f} of {one['least'] / 1e6:,.1f}",
            "",
            f"{one['ratio']:.2f}",
            *("" for _ in range(4)),
            _microseconds(one),
            f"and torch {one['host_bytes'] / 1e6:,.1f} MB",
        )


def _block_rows(blocks: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
    yield ("device", "shape", "pass", "products ms", "kernels ms", "share", "with torch's part")
    for block in blocks:
        yield (
            *(block[key] for key in ("device", "shape", "direction")),
            *(f"{block[f'{key}_seconds'] * 1e3:.3f}" for key in ("matrix", "recurrent")),
            *(f"{block[key]:.1%}" for key in ("share", "share_with_host")),
        )


def _microseconds(row: Mapping[str, Any]) -> str:
    return f"{row['seconds'] * 1e6:,.0f}"


def _numbers(counter: Mapping[str, int]) -> str:
    return " ".join(f"{n} {name}" for name, n in counter.items()) or "-"


def _widths(counter: Mapping[str, int]) -> str:
    """Widths with their part of the instructions, the widest first."""
    total = sum(counter.values())
    order = sorted(counter, key=lambda w: -int(w) if w.isdigit() else -1000)
    return " ".join(f"{w}:{counter[w] / total:.0%}" for w in order) or "-"


def _aligned(rows: Iterable[Sequence[str]]) -> Iterable[str]:
    rows = [list(map(str, row)) for row in rows]
    widths = [max(len(r[i]) for r in rows if i < len(r)) for i in range(max(map(len, rows)))]
    for row in rows:
        yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)).rstrip()
